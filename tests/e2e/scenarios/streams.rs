//! Bytes in and out of a container.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::{
    BUSYBOX, Bundle, Container, Host, Podman, Scenario, processes, scenarios, wait,
};
use sha2::{Digest, Sha256};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        echo_64_mib,
        half_close,
        closed_input,
        dialogue,
        back_pressure,
        podman_back_pressure
    ]
}

/// 64 MiB that go in come out unchanged.
fn echo_64_mib(host: &Host) -> Result<()> {
    let bytes = noise(64 << 20);
    let expected = Sha256::digest(&bytes);
    let run = Podman::new(host)?
        .run(["--rm", "-i", BUSYBOX, "cat"])?
        .input(bytes);
    let run = run.limit(Duration::from_secs(120)).run()?.ok()?;
    ensure!(
        run.stdout.len() == 64 << 20,
        "{} bytes came back",
        run.stdout.len()
    );
    ensure!(
        Sha256::digest(&run.stdout) == expected,
        "other bytes came back"
    );
    Ok(())
}

/// Bytes without a pattern that a lost or repeated block could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The end of the input reaches the container while its output stays open.
fn half_close(host: &Host) -> Result<()> {
    let run = Podman::new(host)?.run(["--rm", "-i", BUSYBOX, "sh", "-c", "cat; echo after"])?;
    let run = run.input("before\n").run()?.ok()?;
    ensure!(run.text() == "before\nafter", "{run}");
    Ok(())
}

/// A container that closes its input early does not harm the one who writes.
fn closed_input(host: &Host) -> Result<()> {
    let script = "head -c 5; exec 0<&-; echo; echo done";
    let run = Podman::new(host)?.run(["--rm", "-i", BUSYBOX, "sh", "-c", script])?;
    let run = run.input(vec![b'x'; 1 << 20]).run()?.ok()?;
    ensure!(run.text() == "xxxxx\ndone", "{run}");
    Ok(())
}

/// Writes 64 KiB at a time and counts in a file that the host sees.
const WRITER: &str =
    "i=0; while head -c 65536 /dev/zero; do i=$((i+1)); echo $i > /data/count; done";

/// Nobody who waits for a slow reader may keep more than this, in blocks of
/// 64 KiB: pipes, sockets and buffers of every program on the way.
const MOST_BLOCKS: u64 = 1024;

/// A reader that stops stops the writer, and nobody between them hoards.
fn back_pressure(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let bundle =
        Bundle::new(host, &["sh", "-c", WRITER])?.bind(&data.to_string_lossy(), "/data")?;
    let mut container = Container::create_with(host, &bundle, |create| create.output_by_hand())?;
    container.start()?;
    let mut output = container
        .streams()
        .stdout
        .take()
        .context("the container's output")?;
    stops_and_goes_on(host, &data, &mut output)?;
    container.kill("KILL")?.ok()?;
    drop(output);
    ensure!(container.wait(Duration::from_secs(10))?.shell() == 137);
    container.delete()
}

/// The same with podman and conmon on the way.
fn podman_back_pressure(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let volume = casemate_e2e::podman::volume(&data, "/data");
    let podman = Podman::new(host)?;
    let name = host.new_id();
    let arguments = [
        "--rm",
        "--log-driver=none",
        &volume,
        "--name",
        &name,
        BUSYBOX,
        "sh",
        "-c",
        WRITER,
    ];
    let mut run = podman.run(arguments)?.output_by_hand().start()?;
    let mut output = run.stdout.take().context("podman's output")?;
    stops_and_goes_on(host, &data, &mut output)?;
    let mut rest = Vec::new();
    let reader = std::thread::spawn(move || output.read_to_end(&mut rest));
    podman.command(["kill", &name])?.run()?.ok()?;
    run.finish()?.exits(137)?;
    ensure!(reader.join().is_ok_and(|read| read.is_ok()));
    Ok(())
}

fn stops_and_goes_on(host: &Host, data: &Path, output: &mut impl Read) -> Result<()> {
    let stopped_at = standstill(data)?;
    ensure!(
        stopped_at < MOST_BLOCKS,
        "{stopped_at} blocks were taken from a writer nobody reads"
    );
    hoards_nothing(host)?;
    let mut bytes = vec![0; 4 << 20];
    output.read_exact(&mut bytes)?;
    wait::until_true("the writer goes on", Duration::from_secs(10), || {
        Ok(count(data) > stopped_at)
    })?;
    ensure!(bytes.iter().all(|byte| *byte == 0), "other bytes came");
    Ok(())
}

/// Waits until the writer's count has not changed for a while.
fn standstill(data: &Path) -> Result<u64> {
    let (mut last, mut same) = (0, 0);
    wait::until("the writer stops", Duration::from_secs(40), || {
        std::thread::sleep(Duration::from_millis(100));
        let now = count(data);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok((now > 0 && same >= 15).then_some(now))
    })
}

fn count(data: &Path) -> u64 {
    let text = fs::read_to_string(data.join("count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// No process of the runtime has taken much memory of its own.
fn hoards_nothing(host: &Host) -> Result<()> {
    let name = host.runtime.kind.to_string();
    for process in processes::ours()
        .iter()
        .filter(|process| process.program() == name)
    {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous
            .and_then(|line| line.split_whitespace().next())
            .unwrap_or("0");
        ensure!(
            kib.parse::<u64>()? < 64 << 10,
            "{process} has taken {kib} KiB"
        );
    }
    Ok(())
}

/// A conversation: an answer comes before the next question is asked.
fn dialogue(host: &Host) -> Result<()> {
    let script = "while read line; do echo \"<$line>\"; done; echo end";
    let mut run = Podman::new(host)?
        .run(["--rm", "-i", BUSYBOX, "sh", "-c", script])?
        .input_by_hand()
        .output_by_hand()
        .start()?;
    let mut input = run.stdin.take().context("podman's input")?;
    let mut output = run.stdout.take().context("podman's output")?;
    for word in ["one", "two", "three"] {
        writeln!(input, "{word}")?;
        let mut answer = vec![0; word.len() + 3];
        output.read_exact(&mut answer)?;
        ensure!(
            answer == format!("<{word}>\n").as_bytes(),
            "{word} was answered wrongly"
        );
    }
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    ensure!(rest == "end\n", "{rest:?}");
    run.finish()?.ok()?;
    Ok(())
}
