"""The laws of tests/codec/laws.py hold for every codec of the table, in every width."""

import laws
import pytest

from swarm_tf import codec as codecs


@pytest.mark.parametrize(("name", "bits"), codecs.variants())
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_it_holds(law, name, bits):
    law(codecs.build(name, bits))
