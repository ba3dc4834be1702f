"""A script in the kserve SDK's manner, with a main function."""

from pid import Pid

from mpserve import ModelServer


def main() -> None:
    ModelServer(workers=2).start([Pid("m")])


if __name__ == "__main__":
    main()
