//! Names for the addresses in a crash of the guest's kernel, whose image has none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Options of `cargo xtask trace`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What the guest said: console.log of a sandbox
    #[arg(value_name = "FILE")]
    log: PathBuf,
    /// Addresses of the kernel that said it, in place of build/guest/System.map
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
}

/// Prints the log, with a name behind each address of the kernel.
pub(crate) fn run(options: &Options) -> Result<()> {
    let map = match &options.symbols {
        Some(path) => path.clone(),
        None => workspace::build("guest").join("System.map"),
    };
    let symbols = Symbols::read(&read(&map)?);
    ensure!(!symbols.0.is_empty(), "{}: no symbols", map.display());
    for line in read(&options.log)?.lines() {
        println!("{}", symbols.explain(line));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Addresses and names of the kernel's functions and data, in order.
struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Reads a System.map: address, kind, name.
    fn read(map: &str) -> Self {
        let symbols = map.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let name = words.nth(1)?;
            // Places of variables of each processor begin at zero.
            (address >= KERNEL).then(|| (address, name.to_string()))
        });
        let mut symbols: Vec<_> = symbols.collect();
        symbols.sort();
        Self(symbols)
    }

    /// The line with `name+offset` behind each address.
    fn explain(&self, line: &str) -> String {
        let mut text = String::new();
        let mut rest = line;
        while let Some(found) = rest.find(ADDRESS) {
            let end = found + ADDRESS.len() + DIGITS;
            let address = rest.get(found..end);
            let number = address.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let end = if number.is_some() { end } else { found + 1 };
            text.push_str(&rest[..end]);
            if let Some((name, offset)) = number.and_then(|number| self.find(number)) {
                text.push_str(&format!(" ({name}+{offset:#x})"));
            }
            rest = &rest[end..];
        }
        text + rest
    }

    fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.0.partition_point(|(begin, _)| *begin <= address);
        // An address behind the last is of something else.
        let (begin, name) = self.0[..after].last().filter(|_| after < self.0.len())?;
        Some((name, address - begin))
    }
}

/// Where the kernel's image is mapped.
const KERNEL: u64 = 0xffff_ffff_8000_0000;

/// How addresses there begin, and how many digits follow.
const ADDRESS: &str = "ffffffff";
const DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "0000000000001000 A percpu\nffffffff81000000 T _text\n\
                       ffffffff81000040 t fuse_end\nffffffff81000100 T _etext\n";

    #[test]
    fn addresses_get_names() {
        let symbols = Symbols::read(MAP);
        let explain = |line| symbols.explain(line);
        assert_eq!(
            explain("[    1.0] RIP: 0010:0xffffffff81000052"),
            "[    1.0] RIP: 0010:0xffffffff81000052 (fuse_end+0x12)"
        );
        assert_eq!(
            explain(" ? 0xffffffff81000000 ffffffff81000041"),
            " ? 0xffffffff81000000 (_text+0x0) ffffffff81000041 (fuse_end+0x1)"
        );
    }

    #[test]
    fn what_is_no_address_of_the_kernel_stays() {
        let symbols = Symbols::read(MAP);
        for line in [
            "CR2: 0xffffffff90000000",
            "CR2: 0xffffffff70000000",
            "RAX: ffffffffé",
            "RBX: ffffffffffffffff ffffffff8",
            "",
        ] {
            assert_eq!(symbols.explain(line), line);
        }
    }
}
