"""Every codec of the table, with every number of bits, obeys the laws of tests/codec/laws.py."""

import laws
import pytest

from swarm_tf import codec as codecs

ALIKE = {2, 4, 5, 6, 7}  # bits whose kernels are those of 3 with other numbers
VARIANTS = [
    pytest.param(name, bits, marks=[pytest.mark.slow] if bits in ALIKE else [])
    for name, bits in codecs.variants()
]


@pytest.mark.parametrize(("name", "bits"), VARIANTS)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_every_codec_obeys_every_law(law, name, bits):
    law(codecs.build(name, bits))
