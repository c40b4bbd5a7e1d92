"""The benchmark behind ``make bench``: interleaved runs, medians, ratios to floors and peers measured in the same run."""
