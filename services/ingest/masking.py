"""Personal data in what customers write is taken out before anything is recorded: a policy of the company's."""

from msgspec import structs

from recorrido.ingest.v1.events import Interaction
from services.foundation import masking
from services.foundation.masking import DEFAULT_REGIONS, Pii, kinds_of, regions_of
from services.ingest.domain import MAX_VERBATIM_BYTES

__all__ = ["DEFAULT_REGIONS", "Masker", "Pii", "kinds_of", "regions_of"]


class Masker(masking.Masker):
    """Masks the verbatims of interactions, too."""

    def interaction(self, interaction: Interaction) -> Interaction:
        """Return the interaction with its verbatim masked; one that is too long to be recorded stays as it is."""
        verbatim = interaction.verbatim
        if not self.kinds or verbatim is None or len(verbatim.text) > MAX_VERBATIM_BYTES:
            return interaction
        masked = self.text(verbatim.text)
        if masked == verbatim.text:
            return interaction
        return structs.replace(interaction, verbatim=structs.replace(verbatim, text=masked))
