"""Every codec of the table, with every number of bits, obeys the laws of tests/codec/laws.py."""

import laws
import pytest

from swarm_tf import codec as codecs


@pytest.mark.parametrize(("name", "bits"), codecs.variants())
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_every_codec_obeys_every_law(law, name, bits):
    law(codecs.build(name, bits))
