"""Generated from shim/task/api/options.proto by agent/api/generate.py: do not edit."""

from agent.api import descriptors

descriptors.load(
    b'\n\x1bshim/task/api/options.'
    b'proto\x12\x17hako.containerd.o'
    b'ptions"\x91\x02\n\x0bRuncOptions\x12\x15'
    b'\n\rno_pivot_root\x18\x01 \x01(\x08\x12\x16\n'
    b'\x0eno_new_keyring\x18\x02 \x01(\x08\x12\x13\n'
    b'\x0bshim_cgroup\x18\x03 \x01(\t\x12\x0e\n\x06io'
    b'_uid\x18\x04 \x01(\r\x12\x0e\n\x06io_gid\x18\x05 \x01'
    b'(\r\x12\x13\n\x0bbinary_name\x18\x06 \x01(\t\x12'
    b'\x0c\n\x04root\x18\x07 \x01(\t\x12\x16\n\x0esystemd'
    b'_cgroup\x18\t \x01(\x08\x12\x17\n\x0fcriu_im'
    b'age_path\x18\n \x01(\t\x12\x16\n\x0ecriu_w'
    b'ork_path\x18\x0b \x01(\t\x12\x18\n\x10task_a'
    b'pi_address\x18\x0c \x01(\t\x12\x18\n\x10task'
    b'_api_version\x18\r \x01(\r"L\n\x0eRu'
    b'ntimeOptions\x12\x10\n\x08type_url'
    b'\x18\x01 \x01(\t\x12\x13\n\x0bconfig_path\x18\x02 '
    b'\x01(\t\x12\x13\n\x0bconfig_body\x18\x03 \x01(\x0c'
    b'"!\n\x0eProcessDetails\x12\x0f\n\x07ex'
    b'ec_id\x18\x01 \x01(\tb\x06proto3',
    globals(),
)
