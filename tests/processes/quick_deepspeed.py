"""Run a trainer without DeepSpeed's shared-memory kernel, whose compilation takes minutes on a CPU; gloo does its work.

quick_deepspeed.py trainers/<stage>.py key=value ...
"""

import importlib
import os
import runpy
import sys

os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
# By name: the attribute deepspeed.comm.torch is torch itself.
importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
