"""Networks of columns with junctions (McGill and Perona, ICML 2017)."""
