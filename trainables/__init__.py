"""What one trial trains: networks, methods, data, training, curves. Needs torch alone."""

import os

from spaces.moved import install

# oneDNN compiles a kernel for every shape and keeps the last 1,024. Where images leave a batch, its size differs at
# every layer and time: hundreds of shapes a batch, and half a millisecond for each that was dropped. It reads this
# at its first call, so nothing of torch may be executed before; a kernel takes 20 to 50 KB.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

install(__name__, __path__)
