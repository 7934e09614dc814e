"""Projects with dependencies from a registry: installed by ``setup``, verified without network."""

from pathlib import Path

import pytest
from tests.system.workbench import ended, git, repository, stack, task

from nestor.model.task import Check, Reason, TaskStatus

PYTHON = {
    "requirements.txt": "iniconfig==2.0.0\n",
    "conf.py": "from iniconfig import IniConfig\n\n\n"
    "def port(path):\n    return IniConfig(path)['server']['hosts']\n",
    "server.ini": "[server]\nport = 8090\n",
    "test_conf.py": "import unittest\n\nfrom conf import port\n\n\n"
    "class TestPort(unittest.TestCase):\n    def test_port(self):\n"
    "        self.assertEqual(port('server.ini'), '8090')\n",
}
NODE = {
    "package.json": '{"name": "sample", "private": true,'
    ' "dependencies": {"is-number": "7.0.0"}}\n',
    "count.js": "const isNumber = require('is-number');\n"
    "module.exports = (words) => words.filter((word) => !isNumber(word)).length;\n",
    "count.test.js": "const test = require('node:test');\n"
    "const assert = require('node:assert');\nconst count = require('./count.js');\n"
    "test('numbers are counted', () => assert.equal(count(['1', 'a', '2.5']), 2));\n",
}
NPM = (
    "cp package.json $NESTOR_SETUP/ && cd $NESTOR_SETUP"
    " && npm install --no-audit --no-fund --ignore-scripts --loglevel=error"
)
INSTALLED = "/setup/node_modules"


@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_a_package_of_pypi_and_one_of_npm_are_there_for_agent_and_checks(
    tmp_path: Path,
) -> None:
    python = repository(tmp_path / "python", PYTHON)
    node = repository(tmp_path / "node", NODE)
    with_pip = task(
        python,
        # The agent sees the package, too; what it says is not needed to be true.
        "python3 -c 'import iniconfig' && sed -i 's/hosts/port/' conf.py",
        task_id="pip",
        setup=[
            "python3 -m venv $NESTOR_SETUP/venv",
            "$NESTOR_SETUP/venv/bin/pip install -q -r requirements.txt",
        ],
        test_command=["/setup/venv/bin/python", "-m", "unittest", "-v", "test_conf"],
    )
    with_npm = task(
        node,
        "sed -i 's/!isNumber/isNumber/' count.js",
        task_id="npm",
        setup=[NPM],
        test_command=None,
        checks=[
            Check(
                name="tests",
                run=["node", "--test", "count.test.js"],
                env={"NODE_PATH": INSTALLED},
            )
        ],
    )
    async with stack(tmp_path / "home") as nestor:
        for spec, repo, word in ((with_pip, python, "port"), (with_npm, node, "isN")):
            done = await ended(nestor, spec, within_s=110)
            assert done.status is TaskStatus.VERIFIED, done.detail
            assert done.reason is Reason.CHECKS_PASSED
            assert word in git(repo, "diff", "main", f"nestor/{spec.task_id}")
            (last,) = await nestor.ralph.iterations(spec.task_id)
            (verdict,) = last.verdicts
            assert verdict.tests == 1, verdict
