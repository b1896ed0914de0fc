//! What casemate tells about the machine and about a start.

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::{Bundle, Container, Exit, Host, Scenario, scenarios};
use serde_json::Value;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let all: Vec<Scenario> = scenarios![timeline, timeline_for_people, check, as_much_as_is_wanted];
    all.into_iter()
        .map(|scenario| scenario.only_vm("runc has no such verb or key"))
        .collect()
}

/// The parts of a start, in the order in which they begin. A machine that booted
/// has "kernel" before "agent".
const PARTS: [&str; 4] = ["host", "vmm", "agent", "container"];

/// Every part is there, on one clock.
fn timeline(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let told = host
        .oci(&["timeline", &container.id, "--format", "json"])
        .run()?
        .ok()?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let spans = told["spans"].as_array().context("a list of spans")?;
    ensure!(told["clock"] == "CLOCK_MONOTONIC", "{told}");
    let number = |span: &Value, key: &str| {
        span[key]
            .as_u64()
            .with_context(|| format!("{key} in {span}"))
    };
    for span in spans {
        ensure!(number(span, "beginNs")? <= number(span, "endNs")?, "{span}");
        ensure!(
            span["name"].as_str().is_some_and(|name| !name.is_empty()),
            "{span}"
        );
    }
    let first = |part: &str| -> Result<u64> {
        let begins = spans
            .iter()
            .filter(|span| span["part"] == part)
            .map(|span| number(span, "beginNs"));
        begins
            .min_by_key(|begin| *begin.as_ref().unwrap_or(&0))
            .with_context(|| format!("no part {part}: {told}"))?
    };
    let begins = PARTS.into_iter().map(first).collect::<Result<Vec<u64>>>()?;
    ensure!(
        begins.is_sorted(),
        "the parts begin in another order: {begins:?}\n{told}"
    );
    let all_within = begins.last().unwrap_or(&0) - begins.first().unwrap_or(&0);
    ensure!(
        all_within < 60_000_000_000,
        "one start took {all_within} ns"
    );
    let start = &told["start"];
    let whole = number(start, "endNs")? - number(start, "beginNs")?;
    let explained = number(start, "explainedNs")?;
    ensure!(
        explained * 100 >= whole * 95,
        "of {whole} ns of a start, {explained} have a name\n{told}"
    );
    container.delete_force()
}

fn timeline_for_people(host: &Host) -> Result<()> {
    let container = Container::run(host, &Bundle::new(host, &["sleep", "1000"])?)?;
    let told = host.oci(&["timeline", &container.id]).run()?.ok()?;
    for part in PARTS {
        contains(&told.text(), part)?;
    }
    contains(&told.text(), "\nexplained: ")?;
    host.oci(&["exec", &container.id, "true"]).run()?.ok()?;
    let told = host.oci(&["timeline", &container.id]).run()?.ok()?;
    contains(&told.text(), "\nexec ")?;
    container.delete_force()
}

/// The monitor logs what `log.level` says.
fn as_much_as_is_wanted(host: &Host) -> Result<()> {
    let logged = |level: &str| -> Result<String> {
        let file = host.dir.join("config.toml");
        std::fs::write(&file, format!("[log]\nlevel = \"{level}\"\n"))?;
        let file = file.to_str().context("a path in UTF-8")?;
        let bundle = Bundle::new(host, &["true"])?;
        let id = host.new_id();
        let create = ["--config", file, "create", "--bundle", bundle.path(), &id];
        let created = host.oci(&create).start()?;
        ensure!(created.exit()? == Exit::Code(0), "{}", created.finish()?);
        let directory = host.runtime.default_root().join(&id);
        let log = std::fs::read_to_string(directory.join("sandbox/monitor.log"))?;
        host.oci(&["delete", "--force", &id]).run()?.ok()?;
        created.finish()?.ok()?;
        Ok(log)
    };
    contains(&logged("debug")?, " DEBUG ")?;
    contains(&logged("info")?, " INFO ")?;
    let little = logged("error")?;
    ensure!(!little.contains(" INFO "), "{little}");
    Ok(())
}

/// The tier and why it is that one.
fn check(host: &Host) -> Result<()> {
    let told = host.oci(&["check"]).run()?.ok()?;
    let tiers = ["kvm", "nested", "emulated"];
    ensure!(
        tiers.iter().any(|tier| told.text().contains(tier)),
        "{told}"
    );
    ensure!(told.text().to_lowercase().contains("/dev/kvm"), "{told}");
    ensure!(
        told.text().lines().count() >= 3,
        "tier and evidence were expected\n{told}"
    );
    Ok(())
}
