mkdir -p ai-stack/tests
printf 'import pytest\n\n\n@pytest.fixture\ndef layers():\n    return ["ralph", "coordinator", "aidb"]\n' > ai-stack/tests/conftest.py
printf 'def test_layers(layers):\n    assert len(layers) == 3\n' > ai-stack/tests/test_orchestration_integration.py
