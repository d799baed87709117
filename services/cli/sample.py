"""The made-up customers of a plausible company, a retailer of household electronics in four countries.

Deterministic: the same seed gives the same customers, each whatever the number of the others, so loading the sample
twice adds nothing. Its 90 days end on a fixed date for the same reason. Only `Random.random` is used, which alone is
promised to give the same numbers in every version of Python.

Every day enough people look up where their parcel is, and tap how that went, for a control chart; in one week of
September the carrier sent no news, which takes it out of its limits.

Each customer has a persona, which prefers some channels, and a mood from 0 to 1, which experiences move and ratings
show. Journeys are no line: every step follows from the one before and from the mood.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TypeVar

import yaml

from recorrido.ingest.v1.interaction_pb2 import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    Money,
    Outcome,
    Rating,
    RatingMetric,
    Referral,
    ReferralDirection,
    Verbatim,
)

CUSTOMERS = 800
SEED = 1
DAYS = 90
#: The end of the sample's time.
ANCHOR = datetime(2026, 9, 30, tzinfo=UTC)
#: When the carrier sent no news of any parcel.
NO_NEWS = (ANCHOR - timedelta(days=24), ANCHOR - timedelta(days=17))

LANGUAGES = ("en", "es", "sl", "pt")
KINDS = ("pain", "itch", "delight", "neutral")
PHRASES = Path(__file__).parent / "phrases"

#: How often each part of the company does well.
_QUALITY = {
    "store": 0.80,
    "web": 0.74,
    "app": 0.66,
    "delivery": 0.72,
    "phone": 0.60,
    "chat": 0.68,
    "email": 0.58,
    "returns": 0.62,
    "repair": 0.55,
    "product": 0.84,
}
_CURRENCY = {"en": "GBP", "es": "EUR", "sl": "EUR", "pt": "EUR"}
_COUNTRY = {"en": "GB", "es": "ES", "sl": "SI", "pt": "PT"}
_CHANNEL = {
    "phone": ("callcenter", "call", Channel.CHANNEL_PHONE),
    "chat": ("chatdesk", "chat", Channel.CHANNEL_CHAT),
    "email": ("mailroom", "message", Channel.CHANNEL_EMAIL),
}
_PRODUCTS = (
    "kettle",
    "headphones",
    "vacuum_cleaner",
    "coffee_machine",
    "air_fryer",
    "lamp",
    "router",
    "washing_machine",
)

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Persona:
    """`shops` and `asks` weigh where a customer buys and gets help; `talks` is how likely they say something."""

    name: str
    shops: Mapping[str, float]
    asks: Mapping[str, float]
    talks: float


_PERSONAS = (
    Persona("digital native", {"app": 6, "web": 3, "store": 1}, {"chat": 7, "email": 1, "phone": 1}, 0.45),
    Persona("bargain hunter", {"web": 6, "app": 3, "store": 2}, {"email": 4, "chat": 4, "phone": 2}, 0.40),
    Persona("loyal regular", {"store": 7, "web": 2, "app": 1}, {"phone": 7, "email": 2, "chat": 1}, 0.50),
    Persona("busy parent", {"app": 4, "web": 5, "store": 1}, {"chat": 4, "phone": 4, "email": 2}, 0.35),
    Persona("careful planner", {"web": 5, "store": 4, "app": 1}, {"email": 4, "phone": 3, "chat": 3}, 0.55),
)


@functools.cache
def phrases(language: str) -> dict[str, dict[str, list[str]]]:
    """Return what people say: topic, then kind of experience point, then texts."""
    content: dict[str, dict[str, list[str]]] = yaml.safe_load(
        (PHRASES / f"{language}.yaml").read_text(encoding="utf-8")
    )
    return content


def generate(customers: int = CUSTOMERS, seed: int = SEED) -> Iterator[list[Interaction]]:
    """Yield the interactions of each customer, oldest first."""
    for number in range(customers):
        yield _Story(seed, number).tell()


class _Dice:
    """Chance that gives the same every time for the same name."""

    def __init__(self, *name: object) -> None:
        self._random = Random("/".join(map(str, name))).random  # noqa: S311 - no secret

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self._random() * len(choices))]

    def weighted(self, weights: Mapping[Choice, float]) -> Choice:
        left = self._random() * sum(weights.values())
        for choice, weight in weights.items():
            left -= weight
            if left < 0:
                return choice
        return choice


def customer_id(seed: int, number: int) -> str:
    return f"sample-{seed}-{number:04d}"


def _recommends(seed: int, number: int) -> bool:
    """Whether customer `number` recommended the company to the next one."""
    return _Dice(seed, "recommends", number).chance(0.16)


class _Story:
    """One customer's 90 days, told step by step."""

    def __init__(self, seed: int, number: int) -> None:
        self._seed = seed
        self._number = number
        self._dice = dice = _Dice(seed, "customer", number)
        self._id = customer_id(seed, number)
        self._language = dice.weighted({"en": 30, "es": 25, "sl": 20, "pt": 25})
        self._kind = dice.weighted(
            {
                CustomerKind.CUSTOMER_KIND_BUYER: 88.0,
                CustomerKind.CUSTOMER_KIND_EMPLOYEE: 6.0,
                CustomerKind.CUSTOMER_KIND_SUPPLIER: 4.0,
                CustomerKind.CUSTOMER_KIND_OTHER: 2.0,
            }
        )
        self._persona = dice.pick(_PERSONAS)
        self._mood = dice.between(0.45, 0.85)
        days = dice.between(0, DAYS * 0.95) - DAYS
        self._now = ANCHOR + timedelta(days=days, hours=dice.between(0, 12))
        #: Of what was bought last.
        self._price = 0.0
        self._episode = ""
        self._episodes = 0
        self._told: list[Interaction] = []

    def tell(self) -> list[Interaction]:
        match self._kind:
            case CustomerKind.CUSTOMER_KIND_EMPLOYEE:
                self._work()
            case CustomerKind.CUSTOMER_KIND_SUPPLIER:
                self._supply()
            case _:
                self._live()
        return self._told

    # -- buyers ----------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        self._discover()
        for _ in range(self._dice.weighted({1: 50, 2: 34, 3: 16})):
            self._explore()
            if self._kind == CustomerKind.CUSTOMER_KIND_OTHER or not self._dice.chance(0.45 + 0.5 * self._mood):
                self._pass(days=self._dice.between(3, 15))
                continue
            self._buy()
            self._afterwards()
            if self._mood < 0.2:
                break  # has had enough
            self._pass(days=self._dice.between(4, 20))
        if self._dice.chance(0.55):
            self._relationship_survey()
        if _recommends(self._seed, self._number):
            self._recommend()

    def _discover(self) -> None:
        self._begin("discover")
        if self._number and _recommends(self._seed, self._number - 1):
            self._add(
                "referrals",
                "recommended_by_friend",
                Channel.CHANNEL_WORD_OF_MOUTH,
                words=self._words("word_of_mouth", self._dice.weighted({"delight": 6, "neutral": 2, "pain": 1}), 0.7),
                referral=Referral(
                    direction=ReferralDirection.REFERRAL_DIRECTION_RECEIVED,
                    other_customer_id=customer_id(self._seed, self._number - 1),
                ),
            )
        elif self._dice.chance(0.5):
            self._add("social", "advert", Channel.CHANNEL_SOCIAL)
        if self._dice.chance(0.15):
            self._add("forum", "thread_read", Channel.CHANNEL_COMMUNITY)

    def _explore(self) -> None:
        self._begin("explore")
        where = self._dice.weighted(self._persona.shops)
        for _ in range(self._dice.whole(1, 3)):
            self._visit(where)
            # People look in one place and go on in another.
            if self._dice.chance(0.35):
                where = self._dice.weighted({"store": 1, "web": 2, "app": 1})
            self._pass(days=self._dice.between(0.1, 2.5))
        if self._dice.chance(0.06):
            self._try_something_new()
        if self._dice.chance(0.12):
            self._ask()

    def _visit(self, where: str) -> None:
        good = self._experience(where, 0.05)
        words = self._words(where, self._kind_of_point(good=good), self._persona.talks * 0.6)
        outcome = Outcome.OUTCOME_UNSPECIFIED if good else Outcome.OUTCOME_ABANDONED
        match where:
            case "store":
                csat = self._csat(good=good) if self._dice.chance(0.15) else ()
                self._add("pos", "visit", Channel.CHANNEL_STORE, words=words, ratings=csat)
            case "app":
                self._add(
                    "app", self._dice.pick(("search", "browse")), Channel.CHANNEL_APP, words=words, outcome=outcome
                )
            case _:
                page = self._dice.pick(("search", "product_page", "comparison"))
                self._add("webshop", page, Channel.CHANNEL_WEB, words=words, outcome=outcome)

    def _try_something_new(self) -> None:
        """Touchpoints so new that they are on no map."""
        source, touchpoint, channel = self._dice.pick(
            (
                ("kiosk", "kiosk_beta", Channel.CHANNEL_STORE),
                ("voice", "voice_assistant", Channel.CHANNEL_OTHER),
                ("webshop", "gift_finder_beta", Channel.CHANNEL_WEB),
            )
        )
        self._add(source, touchpoint, channel)

    def _buy(self) -> None:
        self._begin("order")
        where = self._dice.weighted(self._persona.shops)
        self._price = price = round(self._dice.between(12, 120 if self._dice.chance(0.7) else 690), 2)
        product = {"product": self._dice.pick(_PRODUCTS)}
        if where == "store":
            good = self._experience("store", 0.06)
            self._add(
                "pos",
                f"till_{self._dice.whole(1, 6):02d}",
                Channel.CHANNEL_STORE,
                amount=price,
                outcome=Outcome.OUTCOME_SUCCEEDED,
                words=self._words("store", self._kind_of_point(good=good), self._persona.talks * 0.5),
                attributes=product,
            )
            return
        channel = Channel.CHANNEL_APP if where == "app" else Channel.CHANNEL_WEB
        source = "app" if where == "app" else "webshop"
        if self._dice.chance(0.12):
            self._move(-0.05)
            self._add(
                source,
                "checkout",
                channel,
                outcome=Outcome.OUTCOME_ABANDONED,
                words=self._words(self._dice.pick(("price", where)), "pain", self._persona.talks),
            )
            self._pass(days=self._dice.between(0.1, 2))
        self._add(source, "checkout", channel, amount=price, outcome=Outcome.OUTCOME_SUCCEEDED, attributes=product)
        self._pass(minutes=self._dice.between(1, 9))
        if self._dice.chance(0.05):
            self._move(-0.08)
            self._add("payments", "payment", channel, outcome=Outcome.OUTCOME_FAILED)
            self._pass(minutes=self._dice.between(2, 30))
        self._add("payments", "payment", channel, outcome=Outcome.OUTCOME_SUCCEEDED)
        self._deliver()

    def _deliver(self) -> None:
        self._pass(days=self._dice.between(0.5, 1.5))
        self._add("carrier", "parcel_sent", Channel.CHANNEL_DELIVERY, outcome=Outcome.OUTCOME_SUCCEEDED)
        good = self._experience("delivery", 0.12)
        self._look_up(self._dice.between(0.8, 2.5) if good else self._dice.between(5, 12))
        went = Outcome.OUTCOME_SUCCEEDED
        topic = "delivery"
        if not good:
            went = self._dice.weighted(
                {Outcome.OUTCOME_LATE: 6, Outcome.OUTCOME_FAILED: 2, Outcome.OUTCOME_SUCCEEDED: 2}
            )
            topic = "damaged" if went == Outcome.OUTCOME_SUCCEEDED else "delivery"
        days_late = {"days_late": str(self._dice.whole(2, 9))} if went == Outcome.OUTCOME_LATE else {}
        self._add("carrier", "parcel_delivered", Channel.CHANNEL_DELIVERY, outcome=went, attributes=days_late)
        if self._dice.chance(0.4):
            self._pass(days=self._dice.between(0.2, 2))
            self._add(
                "surveys",
                "delivery_survey",
                Channel.CHANNEL_SURVEY,
                ratings=self._csat(good=good),
                words=self._words(topic, self._kind_of_point(good=good), 0.7),
            )
        if went == Outcome.OUTCOME_FAILED:
            self._ask()
            self._pass(days=self._dice.between(1, 4))
            self._add("carrier", "parcel_delivered", Channel.CHANNEL_DELIVERY, outcome=Outcome.OUTCOME_SUCCEEDED)
        if topic == "damaged":
            self._return()

    def _look_up(self, days: float) -> None:
        """Wait `days`, and look up in between where the parcel is; one tap tells whether that was any help."""
        left = days
        for _ in range(self._dice.whole(3, 7)):
            step = left * self._dice.between(0.1, 0.5)
            left -= step
            self._pass(days=step)
            helped = self._dice.chance(0.4 if NO_NEWS[0] <= self._now < NO_NEWS[1] else 0.88)
            # Who is not helped shrugs: it is no reason to call anybody back, only to mend it for all.
            tap = self._dice.weighted({4: 2, 5: 3} if helped else {2: 1, 3: 9})
            where = self._dice.weighted({"app": 3, "web": 1})
            self._add(
                "app" if where == "app" else "webshop",
                "order_status",
                Channel.CHANNEL_APP if where == "app" else Channel.CHANNEL_WEB,
                ratings=(Rating(metric=RatingMetric.RATING_METRIC_CSAT, value=tap),) if self._dice.chance(0.9) else (),
            )
        self._pass(days=left)

    def _afterwards(self) -> None:
        """Use it, and whatever comes of that, in any order and number."""
        good = self._experience("product", 0.10)
        self._pass(days=self._dice.between(1, 8))
        if self._dice.chance(0.35):
            self._add(
                "app",
                "device_setup",
                Channel.CHANNEL_APP,
                outcome=Outcome.OUTCOME_SUCCEEDED if good else Outcome.OUTCOME_FAILED,
                words=self._words("product", self._kind_of_point(good=good), self._persona.talks),
            )
        for _ in range(3):
            trouble = 0.2 if good else 3.0
            step = self._dice.weighted(
                {
                    "nothing": 4.0,
                    "ask": trouble,
                    "return": trouble * 0.5,
                    "repair": trouble * 0.6,
                    "post": 0.7,
                    "mention": 0.3 + (1 - self._mood) + 0.4 * self._mood,
                }
            )
            match step:
                case "ask":
                    self._ask()
                case "return":
                    self._return()
                    return
                case "repair":
                    self._repair()
                case "post":
                    self._post()
                case "mention":
                    self._mention()
                case _:
                    return
            self._pass(days=self._dice.between(0.5, 4))

    def _ask(self) -> None:
        where = self._dice.weighted(self._persona.asks)
        for attempt in range(3):
            good = self._experience(where, 0.09)
            source, touchpoint, channel = _CHANNEL[where]
            self._add(
                source,
                touchpoint,
                channel,
                outcome=Outcome.OUTCOME_SUCCEEDED if good else Outcome.OUTCOME_FAILED,
                words=self._words(where, self._kind_of_point(good=good), self._persona.talks),
                attributes={"attempt": str(attempt + 1)},
            )
            if good:
                break
            # Who is not helped tries again, elsewhere.
            where = self._dice.weighted({"phone": 2, "chat": 1, "email": 1})
            self._pass(days=self._dice.between(0.1, 2))
        if self._dice.chance(0.35):
            self._pass(minutes=self._dice.between(20, 600))
            self._add("surveys", "contact_survey", Channel.CHANNEL_SURVEY, ratings=self._ces(good=good))

    def _return(self) -> None:
        good = self._experience("returns", 0.12)
        self._add("returnsdesk", "return_requested", Channel.CHANNEL_RETURNS)
        self._pass(days=self._dice.between(2, 5))
        self._add(
            "returnsdesk",
            "return_received",
            Channel.CHANNEL_RETURNS,
            words=self._words("returns", self._kind_of_point(good=good), self._persona.talks),
        )
        self._pass(days=self._dice.between(1, 3) if good else self._dice.between(9, 20))
        self._add(
            "returnsdesk",
            "refund",
            Channel.CHANNEL_RETURNS,
            amount=-self._price,
            outcome=Outcome.OUTCOME_SUCCEEDED if good else Outcome.OUTCOME_LATE,
        )
        if not good and self._dice.chance(0.5):
            self._ask()

    def _repair(self) -> None:
        for _ in range(2):
            good = self._experience("repair", 0.15)
            self._add("workshop", "repair_accepted", Channel.CHANNEL_REPAIR)
            self._pass(days=self._dice.between(3, 7) if good else self._dice.between(10, 18))
            self._add(
                "workshop",
                "repair_finished",
                Channel.CHANNEL_REPAIR,
                outcome=Outcome.OUTCOME_SUCCEEDED if good else Outcome.OUTCOME_FAILED,
                words=self._words("repair", self._kind_of_point(good=good), 0.6),
                ratings=self._csat(good=good) if self._dice.chance(0.4) else (),
            )
            if good:
                return
            self._pass(days=self._dice.between(1, 4))
        if self._dice.chance(0.6):
            self._ask()

    def _post(self) -> None:
        kind = self._dice.weighted({"itch": 4, "neutral": 2, "delight": 2 * self._mood, "pain": 2 * (1 - self._mood)})
        self._add("forum", "post", Channel.CHANNEL_COMMUNITY, words=self._words("community", kind, 1))

    def _mention(self) -> None:
        good = self._dice.chance(self._mood)
        self._add(
            "social", "mention", Channel.CHANNEL_SOCIAL, words=self._words("social", self._kind_of_point(good=good), 1)
        )

    def _relationship_survey(self) -> None:
        self._begin("survey")
        answer = self._scale(0, 10, self._mood)
        # Some stars contradict the words.
        good = (answer >= 7) != self._dice.chance(0.05)
        self._add(
            "surveys",
            "relationship_survey",
            Channel.CHANNEL_SURVEY,
            ratings=(Rating(metric=RatingMetric.RATING_METRIC_NPS, value=answer),),
            words=self._words("survey", self._kind_of_point(good=good), 0.75),
        )

    def _recommend(self) -> None:
        self._begin("recommend")
        self._add(
            "referrals",
            "recommended_to_friend",
            Channel.CHANNEL_WORD_OF_MOUTH,
            words=self._words("word_of_mouth", "delight" if self._mood > 0.5 else "neutral", 0.6),
            referral=Referral(
                direction=ReferralDirection.REFERRAL_DIRECTION_GIVEN,
                other_customer_id=customer_id(self._seed, self._number + 1),
            ),
        )

    # -- employees and suppliers -----------------------------------------------------------------------------------

    def _work(self) -> None:
        for _ in range(self._dice.whole(3, 7)):
            self._begin("work")
            good = self._dice.chance(self._mood)
            words = self._words("employee", self._kind_of_point(good=good), 0.8)
            match self._dice.pick(("pulse", "idea", "shop_floor")):
                case "pulse":
                    mood = Rating(
                        metric=RatingMetric.RATING_METRIC_CUSTOM,
                        name="work_mood",
                        value=self._scale(1, 10, self._mood),
                        scale_min=1,
                        scale_max=10,
                    )
                    self._add("hr", "pulse_survey", Channel.CHANNEL_SURVEY, ratings=(mood,), words=words)
                case "idea":
                    self._add("hr", "idea_box", Channel.CHANNEL_OTHER, words=self._words("employee", "itch", 1))
                case _:
                    self._add("hr", "shop_floor", Channel.CHANNEL_STORE, words=words)
            self._move(self._dice.between(-0.08, 0.08))
            self._pass(days=self._dice.between(4, 14))

    def _supply(self) -> None:
        for _ in range(self._dice.whole(2, 4)):
            self._begin("supply")
            self._add("procurement", "order_received", Channel.CHANNEL_EMAIL)
            self._pass(days=self._dice.between(2, 6))
            good = self._dice.chance(self._mood)
            self._add(
                "procurement",
                "goods_delivered",
                Channel.CHANNEL_DELIVERY,
                outcome=Outcome.OUTCOME_SUCCEEDED if good else Outcome.OUTCOME_LATE,
                words=self._words("supplier", self._kind_of_point(good=good), 0.5),
            )
            self._pass(days=self._dice.between(5, 12))
            self._add(
                "procurement",
                "invoice",
                self._dice.pick((Channel.CHANNEL_EMAIL, Channel.CHANNEL_PHONE)),
                ratings=self._csat(good=good) if self._dice.chance(0.5) else (),
                words=self._words("supplier", self._kind_of_point(good=good), 0.4),
            )
            self._move(0.05 if good else -0.08)
            self._pass(days=self._dice.between(3, 10))

    # -- what every step is made of --------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        self._episodes += 1
        self._episode = f"{self._id}/{self._episodes:02d}-{name}"

    def _pass(self, *, days: float = 0.0, minutes: float = 0.0) -> None:
        self._now += timedelta(days=days, minutes=minutes)
        if days and not 7 <= self._now.hour < 22:
            self._now += timedelta(hours=9)  # people sleep

    def _experience(self, part: str, weight: float) -> bool:
        """Return whether a part of the company did well; the mood feels it."""
        good = self._dice.chance(_QUALITY[part] * 0.8 + 0.2 * self._mood)
        self._move(weight if good else -1.6 * weight)
        return good

    def _move(self, by: float) -> None:
        self._mood = min(0.98, max(0.02, self._mood + by))

    def _kind_of_point(self, *, good: bool) -> str:
        if good:
            return self._dice.weighted({"delight": 62, "neutral": 22, "itch": 16})
        return self._dice.weighted({"pain": 82, "itch": 10, "neutral": 8})

    def _words(self, topic: str, kind: str, probability: float) -> Verbatim | None:
        if not self._dice.chance(probability):
            return None
        texts = phrases(self._language)[topic].get(kind)
        return Verbatim(text=self._dice.pick(texts), language=self._language) if texts else None

    def _scale(self, low: int, high: int, feeling: float) -> int:
        """Return an answer that shows a feeling from 0 to 1, except for the few who tick the wrong end."""
        shown = 1 - feeling if self._dice.chance(0.04) else feeling
        shown += self._dice.between(-0.14, 0.14)
        return min(high, max(low, low + round(shown * (high - low))))

    def _csat(self, *, good: bool) -> tuple[Rating]:
        return (Rating(metric=RatingMetric.RATING_METRIC_CSAT, value=self._scale(1, 5, self._after(good=good))),)

    def _ces(self, *, good: bool) -> tuple[Rating]:
        return (Rating(metric=RatingMetric.RATING_METRIC_CES, value=self._scale(1, 7, self._after(good=good))),)

    def _after(self, *, good: bool) -> float:
        """Return the feeling right after an experience: it weighs as much as all that was before."""
        return (self._mood + (0.95 if good else 0.1)) / 2

    def _add(
        self,
        source: str,
        touchpoint: str,
        channel: Channel.ValueType,
        *,
        outcome: Outcome.ValueType = Outcome.OUTCOME_UNSPECIFIED,
        words: Verbatim | None = None,
        ratings: Sequence[Rating] = (),
        amount: float | None = None,
        referral: Referral | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        if self._now > ANCHOR:
            return
        told = Interaction(
            source=source,
            interaction_id=f"{self._id}/{len(self._told):03d}",
            customer=Customer(customer_id=self._id, kind=self._kind),
            touchpoint=touchpoint,
            channel=channel,
            episode_id=self._episode,
            outcome=outcome,
            verbatim=words,
            ratings=ratings,
            referral=referral,
            attributes={
                "customer.country": _COUNTRY[self._language],
                "customer.segment": self._persona.name,
                **(attributes or {}),
            },
        )
        told.occurred_at.FromDatetime(self._now.replace(microsecond=0))
        if amount is not None:
            told.amount.CopyFrom(Money(currency_code=_CURRENCY[self._language], amount=f"{amount:.2f}"))
        self._told.append(told)
        # Two things do not happen to one person in the same second.
        self._now += timedelta(seconds=self._dice.whole(20, 240))
