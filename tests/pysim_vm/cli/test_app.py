"""cli/app.py and the rooms of the commands: what a user types, sees, and gets as an exit code."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pysim_vm
from isa.assembler import assemble
from pysim_vm.cli import run_command
from pysim_vm.cli.machine import count
from pysim_vm.cli.run import TextWatch, rare_collections, unescape
from pysim_vm.cli.status import CommandError, ExitStatus

CHECKOUT = Path(__file__).resolve().parents[3]
ORIGIN = 0x7C00

HELLO = """
        mov dx, 0x3f8
        mov al, 'H'
        out dx, al
        mov al, 'i'
        out dx, al
        mov dx, 0x604
        mov ax, 0x2000
        out dx, ax
        hlt
"""
ECHO = """
        mov dx, 0x3f8
        mov al, '?'
        out dx, al
again:  mov dx, 0x3fd
        in al, dx
        test al, 1
        jz again
        mov dx, 0x3f8
        in al, dx
        out dx, al
        cmp al, 'q'
        jne again
        mov dx, 0x604
        mov ax, 0x2000
        out dx, ax
        hlt
"""
# Sleeps in HLT; COM1's interrupt echoes, q leaves through isa-debug-exit with 3 * 2 + 1.
SLEEPING_ECHO = """
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7000
        mov word [0x24 * 4], handler
        mov word [0x24 * 4 + 2], 0
        mov al, 0x11
        out 0x20, al
        mov al, 0x20
        out 0x21, al
        mov al, 4
        out 0x21, al
        mov al, 1
        out 0x21, al
        mov al, 0xef
        out 0x21, al
        mov dx, 0x3f9
        mov al, 1
        out dx, al
        mov dx, 0x3fc
        mov al, 8
        out dx, al
        mov dx, 0x3f8
        mov al, '>'
        out dx, al
        sti
sleep:  hlt
        jmp sleep
handler:
        mov dx, 0x3f8
        in al, dx
        out dx, al
        cmp al, 'q'
        jne .eoi
        mov al, 3
        out 0xf4, al
.eoi:   mov al, 0x20
        out 0x20, al
        iret
"""


def image(directory: Path, text: str, *, bits: int = 16, origin: int = ORIGIN) -> str:
    """A raw image of `text` in a file."""
    path = directory / "guest.bin"
    path.write_bytes(assemble(text, bits=bits, origin=origin))
    return str(path)


def run(path: str, *options: str) -> int:
    """`pysim-vm run` on a real-mode image, without standard input."""
    return run_command(["run", path, "--load-address", hex(ORIGIN), "--no-input", *options])


# ---- how a run ends ----------------------------------------------------------------------------------------


def test_a_clean_power_off_is_0_and_the_console_is_standard_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(image(tmp_path, HELLO)) == 0
    out, err = capfd.readouterr()
    assert out == "Hi"
    assert err.strip() == "pysim-vm: the guest switched the machine off after 8 instructions"


def test_quiet_says_nothing_when_all_went_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, HELLO), "--quiet") == 0
    assert capfd.readouterr() == ("Hi", "")


def test_quiet_still_says_why_a_run_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, "cli\nhlt"), "--quiet") == 90
    assert "halted for good at 0x7c02: HLT with interrupts off" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("mov al, 21\nout 0xf4, al\nhlt", 43, "with code 43 (isa-debug-exit)"),
        ("cli\nhlt", ExitStatus.HALTED, "HLT with interrupts off"),
        ("sti\nhlt", ExitStatus.HALTED, "an interrupt that no device will raise"),
        ("jmp $", ExitStatus.BUDGET, "budget of 5,000 instructions used up at 0x7c00 (jmp short 0x7c00)"),
        ("mov dx, 0x2f8\nin al, dx", ExitStatus.DEVICE, "port read 0x2f8 width 1: no device"),
        ("lidt [none]\nmov eax, cr0\nor al, 1\nmov cr0, eax\nud2\nnone: dw 7\ndd 0", ExitStatus.TRIPLE_FAULT,
         "triple fault at 0x7c0d"),
    ],
)  # fmt: skip
def test_every_end_has_its_code_and_its_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, status: int, words: str
) -> None:
    assert run(image(tmp_path, text), "--budget", "5000") == status
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("mov eax, 0xd0000000\njmp rax", ExitStatus.NESTED_PAGE_FAULT, "jumped to 0xd0000000"),
        ("vsm4key4 xmm0, xmm1, xmm2", ExitStatus.UNIMPLEMENTED, "vsm4key4 xmm0, xmm1, xmm2"),
        ("mov byte [0x50000000], 1", ExitStatus.DEVICE, "mmio write 0x50000000 width 1: no device"),
    ],
)
def test_ends_that_need_64_bits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, status: int, words: str
) -> None:
    path = image(tmp_path, text, bits=64, origin=0x1000)
    assert run_command(["run", path, "--load-address", "0x1000", "--mode", "long", "--no-input"]) == status
    assert words in capfd.readouterr().err


def test_a_triple_fault_ends_in_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(
        image(tmp_path, "mov ax, 8\nlidt [none]\nmov eax, cr0\nor al, 1\nmov cr0, eax\nud2\nnone: dw 7\ndd 0")
    )
    err = capfd.readouterr().err
    assert "What to look at first" in err
    assert "vector 6 (#UD, invalid opcode): outside the table" in err
    assert "> 0x7c10             0f 0b                          ud2" in err


def test_a_triple_fault_with_idt_limit_0_is_a_power_off(tmp_path: Path) -> None:
    assert run(image(tmp_path, "lidt [none]\nint3\nnone: dw 0\ndd 0")) == 0


def test_guest_codes_are_odd_and_ours_are_even() -> None:
    assert all(status % 2 == 0 for status in ExitStatus)
    assert all(status.meaning for status in ExitStatus)


def test_every_exit_code_is_in_the_documentation() -> None:
    table = (CHECKOUT / "docs" / "exit-codes.md").read_text()
    for status in ExitStatus:
        assert f"| {int(status)} | `{status.name}` | {status.meaning} |" in table


# ---- input and output --------------------------------------------------------------------------------------


def test_typed_text_reaches_the_guest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, ECHO), "--type", r"a\x42", "--type", "q") == 0
    assert capfd.readouterr().out == "?aBq"


def test_typing_can_wait_for_a_prompt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, SLEEPING_ECHO), "--type", "aq", "--after", ">") == 7
    assert capfd.readouterr().out == ">aq"


def test_a_file_is_typed_before_the_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"xy")
    assert run(image(tmp_path, ECHO), "--input", str(script), "--type", "q") == 0
    assert capfd.readouterr().out == "?xyq"


def test_keys_may_go_to_the_ps2_keyboard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "wait: in al, 0x64\ntest al, 1\njz wait\nin al, 0x60\ncmp al, 0x1e\njne wait\n" + HELLO
    assert run(image(tmp_path, text), "--type", "a", "--keys", "ps2", "--budget", "100k") == 0
    assert capfd.readouterr().out == "Hi"


def test_stop_on_ends_the_run_at_the_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, ECHO), "--type", "abcq", "--stop-on", "ab") == 0
    out, err = capfd.readouterr()
    assert out == "?ab"
    assert "the console printed 'ab'" in err


def test_a_text_that_never_came_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, HELLO), "--stop-on", "Hello") == ExitStatus.TEXT_MISSING
    assert "the console never printed 'Hello': the guest switched" in capfd.readouterr().err


def test_output_and_debug_log_go_to_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guest = image(tmp_path, "mov dx, 0x402\nmov al, 'D'\nout dx, al\n" + HELLO)
    console, log = tmp_path / "console", tmp_path / "log"
    assert run(guest, "--output", str(console), "--log-file", str(log), "-q") == 0
    assert (console.read_bytes(), log.read_bytes()) == (b"Hi", b"D")
    assert capfd.readouterr().out == ""


def test_output_beyond_the_limit_is_counted_and_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(image(tmp_path, HELLO), "--max-output", "1") == 0
    out, err = capfd.readouterr()
    assert out == "H"
    assert "1 bytes of guest output beyond 1 bytes were dropped" in err


def test_a_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(image(tmp_path, HELLO), "--output", str(tmp_path / "no" / "file")) == ExitStatus.HOST_IO
    err = capfd.readouterr().err
    assert "--output" in err
    assert "No such file or directory" in err
    assert err.count("\n") == 1


def test_the_screen_is_shown_in_a_frame(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guest = image(tmp_path, "mov ax, 0xb800\nmov es, ax\nmov word [es:0], 0x0741\n" + HELLO)
    assert run(guest, "--screen", "-q") == 0
    rows = capfd.readouterr().out.splitlines()
    assert rows[1] == "+" + "-" * 80 + "+"
    assert rows[2] == "|A" + " " * 79 + "|"
    assert len(rows) == 1 + 27


def test_piped_input_is_read_to_its_end(tmp_path: Path) -> None:
    guest = image(tmp_path, SLEEPING_ECHO)
    result = subprocess.run(
        [sys.executable, "-m", "pysim_vm", "run", guest, "--load-address", hex(ORIGIN)],
        input=b"abq", cwd=CHECKOUT, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (7, b">abq")


def test_a_sleeping_guest_whose_input_ended_is_halted(tmp_path: Path) -> None:
    guest = image(tmp_path, SLEEPING_ECHO)
    result = subprocess.run(
        [sys.executable, "-m", "pysim_vm", "run", guest, "--load-address", hex(ORIGIN)],
        input=b"ab", cwd=CHECKOUT, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (90, b">ab")
    assert b"for input, but the input has ended" in result.stderr


def test_a_signal_ends_the_run_between_two_instructions(tmp_path: Path) -> None:
    guest = image(tmp_path, "mov dx, 0x3f8\nmov al, '!'\nagain: out dx, al\njmp again")
    with subprocess.Popen(
        [sys.executable, "-m", "pysim_vm", "run", guest, "--load-address", hex(ORIGIN), "--no-input",
         "--output", "/dev/stderr"],
        cwd=CHECKOUT, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert (
            process.stderr.read(1) == b"!"
        )  # so the guest runs; it prints without end, because a file is written in blocks
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == ExitStatus.INTERRUPTED
    assert b"interrupted by SIGINT after" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        ["generate"],
        ["run", "--help"],
        ["step", "{guest}", "--mode", "real", "--load-address", "0x7c00"],
        ["check", __file__],
    ],
)
def test_a_reader_that_went_away_is_exit_code_74_without_a_traceback(
    tmp_path: Path, command: list[str]
) -> None:
    guest = image(tmp_path, "jmp $")
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "pysim_vm", *(part.format(guest=guest) for part in command)],
        stdout=write_end, stderr=subprocess.PIPE, cwd=CHECKOUT, timeout=60, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert result.returncode == (ExitStatus.CONFIG if command[0] == "check" else ExitStatus.HOST_IO)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr


@pytest.mark.parametrize("option", ["--output", "--trace-file", "--log-file"])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path, option: str) -> None:
    guest = image(tmp_path, "mov al, '!'\nmov dx, 0x3f8\nout dx, al\nmov dx, 0x402\nout dx, al\njmp $")
    result = subprocess.run(
        [sys.executable, "-m", "pysim_vm", "run", guest, "--load-address", hex(ORIGIN), "--no-input",
         "--budget", "100", "--trace", "exits", option, "/dev/full"],
        capture_output=True, cwd=CHECKOUT, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == ExitStatus.HOST_IO
    assert b"cannot be written to /dev/full (No space left on device)" in result.stderr
    assert b"Traceback" not in result.stderr


def test_closed_standard_output_is_as_good_as_dev_null(tmp_path: Path) -> None:
    guest = image(tmp_path, "mov dx, 0x3f8\nmov al, '!'\nout dx, al\njmp $")
    command = f"{sys.executable} -m pysim_vm run {guest} --load-address {ORIGIN} --no-input --budget 100 >&-"
    result = subprocess.run(
        command, shell=True, stderr=subprocess.PIPE, cwd=CHECKOUT, timeout=60, check=False
    )
    assert result.returncode == ExitStatus.BUDGET
    assert b"Traceback" not in result.stderr


def test_a_reader_that_went_away_ends_the_run(tmp_path: Path) -> None:
    guest = image(tmp_path, "mov dx, 0x3f8\nmov al, '!'\nagain: out dx, al\njmp again")
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "pysim_vm", "run", guest, "--load-address", hex(ORIGIN), "--no-input"],
        stdout=write_end, stderr=subprocess.PIPE, cwd=CHECKOUT, timeout=60, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert result.returncode == ExitStatus.HOST_IO
    assert b"Broken pipe" in result.stderr
    assert b"Traceback" not in result.stderr


# ---- traces ------------------------------------------------------------------------------------------------


def test_an_exit_trace_says_what_happened_and_who_answered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(image(tmp_path, HELLO), "--trace", "exits", "-q") == 0
    assert capfd.readouterr().err.splitlines() == [
        "#1 @2 0x7c05: OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550",
        "#2 @4 0x7c08: OUT 0x3f8 <- 'i' (0x69): I/O exit, answered by uart16550",
        "#3 @7 0x7c0f: OUT 0x604 (2 bytes) <- 0x2000: I/O exit, answered by acpi_pm",
    ]


def test_a_trace_shows_the_open_bus(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guest = image(tmp_path, "mov dx, 0x2f8\nin al, dx\n" + HELLO)
    assert run(guest, "--trace", "exits", "-q", "--missing-device", "ones") == 0
    assert capfd.readouterr().err.splitlines()[0] == (
        "#1 @1 0x7c03: IN 0x2f8 -> 0xff: I/O exit, answered by nobody, an open bus"
    )


def test_an_instruction_trace_has_a_line_for_each_instruction(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    guest = image(tmp_path, HELLO)
    assert run(guest, "--trace", "instructions", "--trace-file", str(trace), "-q") == 0
    lines = trace.read_text().splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["0", "0x7c00", "ba", "f8", "03", "mov", "dx,", "0x3f8"]
    assert lines[-1].split()[-3:] == ["out", "dx,", "ax"]


def test_interrupts_and_exceptions_have_lines_of_their_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(image(tmp_path, SLEEPING_ECHO), "--type", "q", "--trace", "instructions") == 7
    assert "! interrupt, vector 0x24" in capfd.readouterr().err


def test_traced_and_untraced_runs_are_the_same_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guest = str(CHECKOUT / "pysim_vm" / "demos" / "grand_tour.bin")
    documents = []
    for trace in ([], ["--trace", "exits"], ["--trace", "instructions"]):
        run(
            guest, "--json", "--missing-device", "gp", "--trace-file", str(tmp_path / "t"), *trace
        ) if trace else run(guest, "--json", "--missing-device", "gp")
        documents.append(json.loads(capfd.readouterr().out))
    assert documents[0] == documents[1] == documents[2]


# ---- JSON --------------------------------------------------------------------------------------------------


def test_a_run_is_one_json_document(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(image(tmp_path, HELLO), "--json", "--screen") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["outcome"] == "power-off"
    assert document["console"] == "Hi"
    assert document["instructions"] == 8
    assert document["exits"] == {"IoWrite": 3}
    assert len(document["screen"]) == 25


def test_a_triple_fault_is_data_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "lidt [none]\nmov eax, cr0\nor al, 1\nmov cr0, eax\nud2\nnone: dw 7\ndd 0"
    assert run(image(tmp_path, text), "--json") == 80
    document = json.loads(capfd.readouterr().out)
    assert document["triple_fault"]["chain"][0].startswith("#UD")


def test_a_mistake_is_json_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "/nowhere/guest", "--json"]) == ExitStatus.LOAD
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["kind"] == "load"
    assert err.startswith("pysim-vm: guest file /nowhere/guest cannot be read")


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run"], 2, "Missing argument 'GUEST'; pysim-vm run --help shows the options"),
        (["fly"], 2, "No such command 'fly'"),
        (["run", "x", "--wings"], 2, "No such option '--wings'"),
        (["run", "/nowhere/x.toml"], 78, "/nowhere/x.toml: cannot be read"),
        (["run", "x", "--budget", "many"], 2, '--budget: "many" is no number'),
        (["run", "x", "--budget", "0"], 2, "--budget: 0 is no count of instructions"),
        (["run", "x", "--trace-file", "t"], 2, "--trace-file needs --trace"),
        (["run", "x", "--no-board", "--platform", "pc"], 2, "contradict each other"),
        (["step", "x", "--until", "there"], 2, "--until"),
        (["check"], 2, "Missing argument 'CONFIG...'"),
        (["generate", "--load-addr", "here"], 2, "no number"),
    ],
)
def test_a_mistake_is_one_sentence(
    capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    assert run_command(arguments) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("pysim-vm: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--memory", "3"], 78, "--memory: 3 bytes are out of range"),
        (["--cpu", "+fly"], 78, "--cpu: unknown CPU feature '+fly'"),
        (["--rom", "bios"], 2, "--rom: 'bios' is not NAME=FILE"),
        (["--disk", "/nowhere/disk"], 66, "--disk: block file /nowhere/disk: no such file"),
        (["--input", "/nowhere/keys"], 66, "--input: /nowhere/keys cannot be read"),
        (["--entry", "0x10"], 66, "the entry point 0x10 lies outside the image"),
    ],
)
def test_a_bad_setting_names_its_option(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], status: int, words: str
) -> None:
    assert run(image(tmp_path, HELLO), *options) == status
    assert words in capfd.readouterr().err


def test_a_file_without_a_mark_asks_for_a_load_address(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", image(tmp_path, HELLO)]) == ExitStatus.LOAD
    assert "give a load address" in capfd.readouterr().err


def test_an_internal_error_is_one_sentence_and_debug_shows_the_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("pysim_vm.cli.machine.build_machine", broken)
    assert run_command(["run", "x"]) == ExitStatus.INTERNAL
    err = capfd.readouterr().err
    assert "internal error in test_app.py line" in err
    assert err.count("\n") == 1
    assert run_command(["run", "x", "--debug"]) == ExitStatus.INTERNAL
    assert "Traceback" in capfd.readouterr().err


def test_counts_take_decimal_units() -> None:
    assert [count("--budget", text) for text in ("5", "20k", "3M", "1_000", "0x10")] == [
        5,
        20_000,
        3_000_000,
        1000,
        16,
    ]
    with pytest.raises(CommandError, match="--budget"):
        count("--budget", "-3")


# ---- configurations ----------------------------------------------------------------------------------------

CONFIG = """
[base]
id = 1
name = "hello"
vm_type = 1
cpu_num = 1
[kernel]
entry_point = 0x7c00
kernel_path = "guest.bin"
kernel_load_addr = 0x7c00
memory_regions = [[0x0, 0x100_0000, 0x7, 0]]
[devices]
emu_devices = []
passthrough_devices = []
"""


def test_a_configuration_runs_with_the_settings_of_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path, HELLO)
    config = tmp_path / "vm.toml"
    config.write_text(CONFIG)
    assert run_command(["run", str(config), "--platform", "pc", "--no-input"]) == 0
    assert capfd.readouterr().out == "Hi"


def test_options_of_guest_files_are_refused_for_a_configuration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "vm.toml"
    config.write_text(CONFIG)
    assert run_command(["run", str(config), "--load-address", "0x1000"]) == 2
    assert "--load-address is for guest files" in capfd.readouterr().err
    assert run_command(["run", str(config), "--memory", "32M"]) == 2
    assert "lists its memory_regions" in capfd.readouterr().err


def test_check_lists_every_error_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "vm.toml"
    config.write_text(CONFIG.replace("cpu_num = 1", 'cpu_num = "one"'))
    assert run_command(["check", str(config)]) == ExitStatus.CONFIG
    err = capfd.readouterr().err
    assert err.startswith(f"error: {config}:6: base.cpu_num:")
    config.write_text(CONFIG)
    assert run_command(["check", str(config)]) == 0
    assert "no errors, no warnings" in capfd.readouterr().out


def test_check_speaks_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "vm.toml"
    config.write_text(CONFIG.replace("[devices]", "[devices]\nwings = 2"))
    assert run_command(["check", str(config), "--json"]) == 0
    messages = json.loads(capfd.readouterr().out)["messages"]
    assert [message["severity"] for message in messages] == ["warning"]
    assert "wings" in messages[0]["message"]


def test_what_generate_writes_is_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "made.toml"
    assert run_command(["generate", "--name", "made", "-O", str(config)]) == 0
    assert run_command(["check", str(config)]) == 0
    assert run_command(["generate", "--json"]) == 0
    assert "[base]" in json.loads(capfd.readouterr().out.split("\n", 1)[1])["toml"]


# ---- step --------------------------------------------------------------------------------------------------


def step(path: str, *options: str) -> int:
    """`pysim-vm step` on a real-mode image."""
    return run_command(["step", path, "--load-address", hex(ORIGIN), *options])


def test_a_step_shows_registers_memory_and_the_way_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert step(image(tmp_path, "mov sp, 0x7000\ncall there\nnop\nthere: xor ax, ax"), "-n", "3") == 0
    out = capfd.readouterr().out
    assert "RSP 0x0 -> 0x7000" in out
    assert "RSP 0x7000 -> 0x6ffe" in out
    assert "[0x6ffe] 0x0000 -> 0x7c06" in out
    assert "goes to 0x7c07" in out
    assert "PF 0 -> 1, ZF 0 -> 1" in out


def test_a_step_shows_its_exit_and_what_the_console_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert step(image(tmp_path, HELLO), "-n", "3") == 0
    out = capfd.readouterr().out
    assert "exit #1: OUT 0x3f8 <- 'H' (0x48): I/O exit, answered by uart16550" in out
    assert "console prints 'H'" in out


def test_every_store_of_a_repeated_instruction_is_seen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "mov al, 0x5a\nmov di, 0x600\nmov cx, 3\nrep stosb\nnop"
    assert step(image(tmp_path, text), "-n", "7", "--json") == 0
    steps = [json.loads(line) for line in capfd.readouterr().out.splitlines()][:-1]
    stores = [(each["linear"], each["after"]) for record in steps for each in record["stores"]]
    assert stores == [("0x600", "0x5a"), ("0x601", "0x5a"), ("0x602", "0x5a")]


def test_an_exception_shows_its_vector_and_its_frame(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "mov sp, 0x7000\nmov word [0], handler\nxor bl, bl\ndiv bl\nhandler: nop"
    assert step(image(tmp_path, text), "-n", "4") == 0
    out = capfd.readouterr().out
    assert "! exception #DE" in out
    assert "goes to vector 0 (#DE, divide error)" in out
    assert "[0x6ffa] 0x0000 -> 0x7c0b" in out


def test_skip_runs_at_full_speed_and_until_stops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    guest = image(tmp_path, "mov cx, 1000\nagain: loop again\nnop\nnop")
    assert step(guest, "--skip", "1001", "-n", "1") == 0
    assert capfd.readouterr().out.split()[:4] == ["1,001", "0x7c05", "90", "nop"]
    assert step(guest, "--until", "0x7c05") == 0
    assert "RIP reached 0x7c05 after 1,001 steps" in capfd.readouterr().err


def test_the_steps_end_with_the_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert step(image(tmp_path, HELLO), "-n", "100") == 0
    out, err = capfd.readouterr()
    assert len([line for line in out.splitlines() if "0x7c" in line]) == 8
    assert "the guest switched the machine off" in err
    assert step(image(tmp_path, "mov dx, 0x2f8\nin al, dx"), "-n", "9") == ExitStatus.DEVICE
    assert step(image(tmp_path, "cli\nhlt"), "-n", "9") == ExitStatus.HALTED


def test_json_steps_are_one_object_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert step(image(tmp_path, HELLO), "-n", "3", "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line.get("step") for line in lines] == [0, 1, 2, None]
    assert lines[0]["changes"] == {"rdx": ["0x0", "0x3f8"]}
    assert lines[2]["console"] == "H"
    assert lines[-1]["outcome"] == "steps"


# ---- small parts -------------------------------------------------------------------------------------------


def test_a_text_is_found_across_writes_and_only_once() -> None:
    watch = TextWatch("login:")
    assert [watch.feed(part) for part in (b"xx log", b"in", b": ", b"login:")] == [False, False, True, False]


def test_escapes_of_typed_text() -> None:
    assert unescape(r"a\rb\n\x1b\\z\e\t") == b"a\rb\n\x1b\\z\x1b\t"
    assert unescape("\\") == b"\\"
    assert unescape(r"\q\xzz") == rb"\q\xzz"
    assert unescape("ä") == "ä".encode()


def test_help_imports_no_machine() -> None:
    code = (
        "import sys; from pysim_vm.cli import run_command; run_command(['--help']); "
        "sys.exit(sum(name in sys.modules for name in ('numpy', 'iced_x86', 'rich', 'elftools')))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"Usage: pysim-vm" in result.stdout


def test_the_package_loads_its_names_when_they_are_used() -> None:
    code = (
        "import sys, pysim_vm; print('numpy' in sys.modules, pysim_vm.AxVM.__name__, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, check=True)
    assert result.stdout.split() == [b"False", b"AxVM", b"True"]


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in pysim_vm.__all__:
        assert getattr(pysim_vm, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'AxVMM'"):
        pysim_vm.AxVMM  # noqa: B018


def test_the_version_is_the_projects(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    version = capfd.readouterr().out.split()[1]
    assert f'version = "{version}"' in (CHECKOUT / "pyproject.toml").read_text()


def test_while_a_guest_runs_the_garbage_collector_looks_seldom_and_afterwards_as_before() -> None:
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] > 10 * before[0]
    assert gc.get_threshold() == before
