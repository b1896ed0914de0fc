//! What a whole pod has used: the files of its containers' cgroups, summed.
//!
//! Those that are made of counters are (cgroup-v2.rst, "Interface Files"). A
//! limit that one container lacks is none of the pod, and of a high-water mark
//! the sum is the most that it can have been. Pressure is no counter: that of
//! the first stays.

use casemate_sandbox::CgroupFiles;

/// Adds the files of one more container.
pub(crate) fn add(sum: &mut CgroupFiles, files: &CgroupFiles) {
    for (name, text) in files
        .iter()
        .filter(|(name, _)| !name.ends_with(".pressure"))
    {
        match sum.get_mut(name) {
            Some(so_far) => *so_far = added(so_far, text),
            None => drop(sum.insert(name.clone(), text.clone())),
        }
    }
}

/// Adds line by line, by the word with which a line begins.
fn added(so_far: &str, more: &str) -> String {
    let key = |line: &str| line.split_once(' ').map_or("", |(key, _)| key).to_owned();
    let mut lines: Vec<String> = so_far.lines().map(str::to_owned).collect();
    for line in more.lines() {
        match lines.iter_mut().find(|known| key(known) == key(line)) {
            Some(known) => *known = added_line(known, line),
            None => lines.push(line.to_owned()),
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// `7`, `anon 7`, or `8:0 rbytes=7 wbytes=8`; words in the same places.
fn added_line(so_far: &str, more: &str) -> String {
    let words = so_far.split(' ').zip(more.split(' '));
    let words = words.map(
        |(so_far, more)| match (so_far.split_once('='), more.split_once('=')) {
            (Some((name, one)), Some((_, other))) => format!("{name}={}", added_number(one, other)),
            _ => added_number(so_far, more),
        },
    );
    words.collect::<Vec<_>>().join(" ")
}

/// What is no number in either is what it was in the first.
fn added_number(one: &str, other: &str) -> String {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one.saturating_add(other).to_string(),
        (Ok(_), Err(_)) if other == "max" => other.to_owned(),
        _ => one.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> CgroupFiles {
        let pairs = pairs.iter();
        pairs
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn counters_are_added_and_no_limit_is_none() {
        let mut sum = files(&[
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("pids.max", "10\n"),
            ("memory.stat", "anon 11\nfile 1\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n",
            ),
            ("io.stat", "254:1 rbytes=1 wbytes=2\n"),
        ]);
        let other = files(&[
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("pids.max", "5\n"),
            ("memory.stat", "anon 1\nslab 3\n"),
            (
                "cpu.pressure",
                "some avg10=9.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            (
                "io.stat",
                "254:1 rbytes=5 wbytes=6\n254:2 rbytes=1 wbytes=0\n",
            ),
            ("memory.peak", "7\n"),
        ]);
        add(&mut sum, &other);
        let expected = files(&[
            ("memory.current", "4196\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "7\n"),
            ("pids.max", "15\n"),
            ("memory.stat", "anon 12\nfile 1\nslab 3\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n",
            ),
            (
                "io.stat",
                "254:1 rbytes=6 wbytes=8\n254:2 rbytes=1 wbytes=0\n",
            ),
        ]);
        assert_eq!(sum, expected);
    }

    #[test]
    fn a_guest_may_send_anything() {
        let mut sum = files(&[("a", ""), ("b", "x\n"), ("c", "18446744073709551615\n")]);
        add(
            &mut sum,
            &files(&[("a", "1 2 3"), ("b", "2\n"), ("c", "1\n")]),
        );
        assert_eq!(sum["a"], "1 2 3\n");
        assert_eq!(sum["b"], "x\n");
        assert_eq!(sum["c"], "18446744073709551615\n");
    }
}
