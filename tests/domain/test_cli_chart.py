"""Which points of a chart a table lists: what the words above it are about is among them."""

from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli.chart import listed


def test_what_is_out_of_its_limits_is_listed_however_long_ago() -> None:
    points = [pb.ChartPoint(state=pb.CHART_STATE_WITHIN, answers=n) for n in range(30)]
    points[7].state = pb.CHART_STATE_OUTSIDE
    points[28].state = pb.CHART_STATE_OUTSIDE
    assert [each.answers for each in listed(points, 3)] == [7, 27, 28, 29]
    assert [each.answers for each in listed(points, 100)] == list(range(30))
