"""A damaged record of an audit says so."""

import json

import pytest

import tfexplain
from tests.helpers.audit_networks import table_columns, table_network
from tests.helpers.deep_lift_networks import KERAS_SAVES
from tests.helpers.folders import changes
from tfexplain.errors import DamagedFileError

pytestmark = KERAS_SAVES


@pytest.fixture(scope="module")
def model():
    return table_network()


@pytest.fixture(scope="module")
def x():
    return table_columns()


def test_every_wrong_key_of_a_record_is_damage(model, x, tmp_path):
    options = {"methods": ["gradient"], "audits": "entropy", "preset": "quick"}
    tfexplain.audit(model, x, folder=tmp_path, **options)
    file = tmp_path / "audit.json"
    record = json.loads(file.read_text())
    del record["sha256"]
    tried = damaged = 0
    with pytest.warns(UserWarning, match="audit.json has no checksum"):
        for changed in changes({k: v for k, v in record.items() if k != "settings"}):
            if isinstance(changed, dict) and changed and "schema" in changed:
                changed = {**changed, "settings": record["settings"]}
            file.write_text(json.dumps(changed))
            tried += 1
            try:
                found = tfexplain.report.load(tmp_path)
                found.verdict()
                found.to_html()
            except DamagedFileError as error:
                assert error.path == file
                damaged += 1
            except ValueError as error:
                assert any(word in str(error) for word in ("schema", "registered", "thresholds"))
    assert tried > 80 and damaged > 20
    file.write_text("[" * 100_000)
    with pytest.raises(DamagedFileError, match="no JSON"):
        tfexplain.report.load(tmp_path)


def test_a_record_of_another_content_is_damaged(model, x, tmp_path):
    options = {"methods": ["gradient"], "audits": "entropy", "preset": "quick"}
    tfexplain.audit(model, x, folder=tmp_path, **options)
    file = tmp_path / "audit.json"
    file.write_text(file.read_text().replace('"gradient"', '"gradiant"'))
    for action in (
        lambda: tfexplain.report.load(tmp_path),
        lambda: tfexplain.audit(model, x, folder=tmp_path, **options),
    ):
        with pytest.raises(DamagedFileError, match="checksum"):
            action()
