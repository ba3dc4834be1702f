"""ModelStatistics, as tritonclient asks for it."""

from tests.grpc.models import Double, Raising
from tests.grpc.serving import infer, serving


async def test_a_call_is_in_the_statistics_that_are_asked_after_it() -> None:
    async with serving(Double(), Raising()) as client:
        await client("ModelInfer", infer("double"))
        [stats] = (await client("ModelStatistics", name="double", version="1")).model_stats
        assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("double", "1", 2, 1)
        durations = stats.inference_stats
        assert (durations.success.count, durations.compute_infer.count, durations.fail.count) == (1, 1, 0)
        assert durations.success.ns > durations.compute_infer.ns > 0
        assert stats.last_inference > 0
        everything = await client("ModelStatistics")
        assert [each.name for each in everything.model_stats] == ["double", "raising"]
