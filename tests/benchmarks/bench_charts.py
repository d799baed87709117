"""How often control charts raise a false alarm, and how soon they tell of a change: the tables of docs/journey.md.

python -m tests.benchmarks.bench_charts
"""

from services.journey.domain.charts import WEIGHT, WIDTH
from tests.support.chartsim import Process, arl, detection, in_control, normal, promoters, shares

PROCESSES: dict[str, Process] = {
    "normal subgroups": normal,
    "CSAT 80 %, about 30 answers a day": shares(0.8, 30),
    "CSAT 95 %, about 100 answers a day": shares(0.95, 100),
    "CSAT 80 %, about 1,000 answers a day; days differ by 3 points besides": shares(0.8, 1_000, 0.03),
    "a pain of 5 %, about 100 customers heard a day": shares(0.05, 100),
    "a pain of 1 %, about 100 customers heard a day": shares(0.01, 100),
    "NPS 30, 30 answers a day": promoters((0.2, 0.3, 0.5), 30),
    "NPS 88, 50 answers a day": promoters((0.02, 0.08, 0.90), 50),
}


def main() -> None:
    print(f"false alarms; {arl(WEIGHT, WIDTH):,.0f} points between two in theory")
    for name, process in PROCESSES.items():
        found = in_control(process, 1_000, 4_000)
        error = found.arl / max(found.alarms, 1) ** 0.5
        print(f"| {name} | {found.arl:,.0f} ± {1.96 * error:,.0f} |")
    print("told within 100 points, and median of points until then; mean in theory")
    for shift in (0.5, 1.0, 1.5, 2.0, 3.0):
        cells = []
        for baseline in (20, 40, 100, 400):
            found_after = detection(normal, baseline, shift, 2_000)
            cells.append(f"{found_after.told:.0%}, {found_after.median:g}")
        print(f"| {shift:g} | {' | '.join(cells)} | {arl(WEIGHT, WIDTH, shift):.1f} |")


if __name__ == "__main__":
    main()
