import argparse

import kserve
from kserve import logging
from kserve.errors import ModelMissingError
from kserve.logging import logger

from . import TreeModel, TreeRepository

parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
parser.add_argument("--model_dir", required=True, help="A local path to the model")
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = TreeModel(args.model_name, args.model_dir)
    try:
        model.load()
        kserve.ModelServer().start([model])
    except ModelMissingError:
        logger.error("no model file under %s, trying it as a repository", args.model_dir)
        kserve.ModelServer(registered_models=TreeRepository(args.model_dir)).start([])
