//! The logs of containers, and their last words.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::Cri;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![lines_of_a_log, begins_a_new_log, last_words]
}

/// Each line has a time, its stream, and says whether it goes on in the next.
fn lines_of_a_log(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("lines").run()?;
    let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo; \
                  head -c 20000 /dev/zero | tr '\\0' x; echo; echo last";
    let main = pod.container("main", &["sh", "-c", script]).start()?;
    main.exits(0)?;
    let lines = main.lines()?;
    let shown: Vec<(&str, bool, bool)> = lines
        .iter()
        .map(|line| (&*line.text, line.is_error, line.is_partial))
        .collect();
    let (first, rest) = ("x".repeat(16384), "x".repeat(20000 - 16384));
    let expected = [
        ("one", false, false),
        ("two", true, false),
        ("", false, false),
        (&first, false, true),
        (&rest, false, false),
        ("last", false, false),
    ];
    ensure!(shown == expected, "{shown:?}");
    ensure!(lines.is_sorted_by_key(|line| &line.time), "{lines:?}");
    // Nothing is lost of much.
    let much = pod.container("much", &["seq", "1", "50000"]).start()?;
    let logged = much.exits(0)?;
    ensure!(logged.lines().count() == 50000 && logged.ends_with("\n50000"));
    pod.end()
}

/// A log that was moved away ends where the new one begins.
fn begins_a_new_log(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("rotation").run()?;
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
    let main = pod.container("main", &["sh", "-c", script]).start()?;
    main.await_log("\n5\n")?;
    let old = main.log.with_extension("old");
    fs::rename(&main.log, &old)?;
    main.reopen_log()?;
    until_true("the new log", SOON, || {
        Ok(main.log.exists() && main.lines()?.len() > 5)
    })?;
    let (old, new) = (fs::read_to_string(&old)?, main.logged()?);
    let number = |word: Option<&str>| -> Result<u32> { Ok(word.context("a number")?.parse()?) };
    let last = number(old.trim_end().rsplit(' ').next())?;
    ensure!(number(new.lines().next())? == last + 1, "{old}{new}");
    pod.end()
}

/// What a container writes into the file for its last words is the kubelet's to read.
fn last_words(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("words").run()?;
    let file = cri.host.new_folder("words")?.join("file");
    fs::write(&file, "")?;
    let words = [
        "sh",
        "-c",
        "echo out of cheese >/dev/termination-log; exit 1",
    ];
    let main = pod.container("main", &words);
    main.mount(&file, "/dev/termination-log")
        .start()?
        .exits(1)?;
    ensure!(fs::read_to_string(&file)? == "out of cheese\n");
    pod.end()
}
