//! What containers could leave in the network of the host.

use std::fs;

use anyhow::{Context, Result};
use casemate_e2e::Host;

/// Interfaces, redirects, packet filters, network namespaces and sockets, as text that is the
/// same when they are.
pub(super) fn traces(host: &Host) -> Result<String> {
    let mut found = String::new();
    let look: [(&str, &[&str]); 4] = [
        ("ip", &["-brief", "link"]),
        ("tc", &["qdisc", "show"]),
        ("ip", &["rule"]),
        ("nft", &["--stateless", "list", "ruleset"]),
    ];
    for (program, arguments) in look {
        let told = host.command(program).args(arguments).run()?.ok()?;
        found = found + program + " " + &arguments.join(" ") + ":\n" + &told.text() + "\n";
    }
    let namespaces = fs::read_dir("/run/netns").map_or(0, Iterator::count);
    let sockets = fs::read_to_string("/proc/self/net/unix").context("/proc/self/net/unix")?;
    let ours = sockets.lines().filter(|line| line.contains("casemate"));
    Ok(found + &format!("{namespaces} namespaces\n{} sockets\n", ours.count()))
}
