"""QEMU: its command line (argv), its monitor protocol (qmp) and its life (driver)."""
