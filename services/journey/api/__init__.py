"""The gRPC face of the journey: proto ⇄ domain."""

from services.journey.api.service import JourneyService

__all__ = ["JourneyService"]
