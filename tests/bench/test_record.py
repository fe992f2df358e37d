import pytest

from equipoise.bench.record import load_all, save


def test_what_is_saved_is_loaded(make_record, tmp_path):
    records = [make_record(), make_record("segnet", ratios={"paper": 2.0}, not_run={"libmtl": "it is | not [there]"})]
    paths = [save(record, tmp_path / "new") for record in records]
    assert [path.name for path in paths] == ["mlp_3-cpu.json", "segnet-cpu.json"]
    assert load_all(tmp_path / "new") == records


def test_a_later_record_takes_the_place_of_an_earlier_one(make_record, tmp_path):
    save(make_record(rounds=3), tmp_path)
    save(make_record(rounds=4), tmp_path)
    (found,) = load_all(tmp_path)
    assert len(found.costs["plain"].seconds) == 4


def test_another_schema_is_refused(make_record, tmp_path):
    path = save(make_record(), tmp_path)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="of schema 2; this version reads schema 1"):
        load_all(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"schema": 1, "costs": {}}'])
def test_another_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match=r"odd\.json: wanted a record of costs"):
        load_all(tmp_path)
