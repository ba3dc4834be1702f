"""The twenty weaknesses of the kserve SDK 0.21 with several workers (W1 to W20), and the test that shows what is right here.

Each number was seen in the SDK by running it.
"""

from pathlib import Path

import psutil

from tests.e2e.workers import kill_and_await_successor, predictions_of_each_worker
from tests.running import serving

COVERED = {
    # Every model was pickled into the children: `TypeError: cannot pickle '_thread.lock' object`.
    "W1": "e2e/test_models.test_a_model_that_holds_what_cannot_be_pickled_serves_from_four_workers",
    # The 5 s liveness ping covered start-up: killed and respawned for ever.
    "W2": "e2e/test_liveness.test_a_load_longer_than_timeout_is_not_taken_for_a_blocked_loop",
    # The liveness ping killed a worker that held the GIL for seconds, in the midst of its request.
    "W3": "e2e/test_liveness.test_a_predict_that_holds_the_gil_for_seconds_loses_nothing",
    # The supervisor pinged starting workers on gRPC's event loop: calls waited 5 to 10 s.
    "W4": "e2e/test_grpc.test_a_loading_worker_takes_no_calls",
    # Each scrape exposed one worker's numbers: 16, 6 and 8 of 30 predicts.
    "W5": "e2e/test_statistics.test_the_sum_over_all_workers_is_exact_and_outlives_a_killed_one",
    # A load reached the worker that was asked: of 12 ready checks after a load, 8 said 404; a respawn forgot it.
    "W6": "e2e/test_repository.test_after_the_answer_every_worker_agrees_and_another_model_has_lost_no_request",
    # `/v2/health/ready` was True in the code, also with a model that was not ready.
    "W7": "e2e/test_boot.test_readiness_is_the_same_from_every_worker",
    # The other workers of a transformer did not know its predictor: 501, and `instances` was validated no more.
    "W8": "e2e/test_transformer.test_two_servers_answer_as_one_and_the_one_in_front_says_when_the_other_is_gone",
    # Middleware added under `__main__` was there with one worker and gone with two.
    "W9": "compat/test_scripts.test_a_predictor_with_flags_response_headers_middleware_and_a_route_of_its_own",
    # gRPC was served from the parent alone, which held one more copy of the model for it.
    "W10": "e2e/test_statistics.test_the_sum_over_all_workers_is_exact_and_outlives_a_killed_one",
    # One copy of the weights was held in the parent and one in each child.
    "W11": "e2e/test_kserve_weaknesses.test_preloaded_weights_are_in_memory_once_for_all_workers",
    # The parent held a CUDA context, and nothing gave a worker a device of its own.
    "W12": "e2e/test_kserve_weaknesses.test_each_worker_has_the_device_of_its_slot_also_after_a_respawn_and_an_engine",
    # `stop()` ran in the parent only.
    "W13": "e2e/test_drain.test_sigterm_finishes_what_was_accepted_and_stops_the_models",
    # `start_engine()` was awaited on the parent's loop only.
    "W14": "e2e/test_kserve_weaknesses.test_each_worker_has_the_device_of_its_slot_also_after_a_respawn_and_an_engine",
    # A successor lost the log file's settings, and neither exit code nor signal was logged.
    "W15": "e2e/test_logs.test_json_lines_carry_slot_model_and_request_also_of_a_respawned_worker",
    # There was no reload, no recycling and no worker numbers.
    "W16": "e2e/test_signals.test_after_hup_the_old_workers_serve_until_the_new_ones_are_ready",
    # `--event-loop` had no effect with one worker.
    "W17": "compat/test_scripts.test_the_event_loop_is_the_one_that_is_asked_for_or_that_the_script_can_nest_in",
    # Spawned children imported the script again, and parsed its command line again.
    "W18": "e2e/test_ways_in.test_what_comes_after_start_runs_once_in_the_arbiter_and_never_in_a_worker",
    # The socket was closed at once, without a phase of 503 on readiness.
    "W19": "e2e/test_drain.test_while_drain_delay_lasts_the_server_is_not_ready_and_still_accepts",
    # With several workers validation, predictor settings, middleware and loop options were lost.
    "W20": "e2e/test_error_table.test_a_fault_is_told_and_leaves_the_connection_usable",
}


def test_every_weakness_is_covered() -> None:
    assert list(COVERED) == [f"W{number}" for number in range(1, 21)]
    for place in COVERED.values():
        module, _, test = place.partition(".")
        assert f"def {test}(" in (Path(__file__).parents[1] / f"{module}.py").read_text()


HEAVY = """
import os
import numpy as np
from mpserve import Model

class Heavy(Model):
    name = "m"
    def preload(self):
        self.weights = np.ones(100 * 2**20 // 8)
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), float(self.weights.sum())]}
"""


def test_preloaded_weights_are_in_memory_once_for_all_workers(tmp_path: Path) -> None:
    with serving(tmp_path, HEAVY, "--workers=3") as server:
        used = predictions_of_each_worker(server.wait_ready(workers=3))
        own = [psutil.Process(pid).memory_full_info().uss / 2**20 for pid in used]
        assert max(own) < 100, f"private memory of the workers, MiB: {own}"


WHERE = """
import asyncio, os
from mpserve import Model

class Where(Model):
    name = "m"
    engine = True
    begun = ()
    def start(self):
        self.begun += ("start",)
    async def start_engine(self):
        asyncio.get_running_loop()
        self.begun += ("engine",)
    def predict(self, payload, headers=None):
        told = [self.device, os.environ["CUDA_VISIBLE_DEVICES"], *sorted(self.begun)]
        return {"predictions": [os.getpid(), *told]}
"""


def test_each_worker_has_the_device_of_its_slot_also_after_a_respawn_and_an_engine(tmp_path: Path) -> None:
    devices = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}  # no driver is asked, so no GPU is needed to see them dealt
    expected = [["cuda:0", gpu, "engine", "start"] for gpu in ("GPU-a", "GPU-b")]
    with serving(tmp_path, WHERE, "--workers=2", env=devices) as server:
        server.wait_ready(workers=2)
        assert sorted(predictions_of_each_worker(server).values()) == expected
        kill_and_await_successor(server, server.workers()[0])
        assert sorted(predictions_of_each_worker(server).values()) == expected
