"""A script in the kserve SDK's manner, with nothing around its last line."""

from pid import Pid

from mpserve import ModelServer

ModelServer().start([Pid("m")])
