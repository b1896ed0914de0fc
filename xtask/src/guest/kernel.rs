//! The guest's kernel: source package and fragments in, a bootable ELF image out.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::fragments::Fragments;
use super::holes;
use super::patches::Patches;
use super::source::Source;
use crate::{cache, command, workspace};

/// What `make` is told, beside folders and the number of jobs. Part of the digest.
const RECIPE: &[&str] = &[
    "ARCH=x86_64",
    "KBUILD_BUILD_USER=casemate",
    "KBUILD_BUILD_HOST=casemate",
    "KBUILD_BUILD_TIMESTAMP=1970-01-01",
    "KBUILD_BUILD_VERSION=1",
];

/// What becomes of the linker's output. Part of the digest as well.
const IMAGE: &str = "stripped, without holes";

/// How often a build that runs without a terminal says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// A built kernel in the cache.
pub(crate) struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The uncompressed ELF image, with the note that PVH boot needs.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The final configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The addresses of its functions, to read a crash with: the image has no names.
    pub(crate) fn symbols(&self) -> PathBuf {
        self.folder.join("System.map")
    }

    /// What it was built from, and how long that took.
    pub(crate) fn version(&self) -> PathBuf {
        self.folder.join("version")
    }
}

/// Takes the kernel from the cache, or builds it; says whether it was built.
pub(crate) fn obtain(archive: Option<&Path>) -> Result<(Kernel, bool)> {
    let source = Source::find(archive)?;
    let fragments = Fragments::read(&workspace::root().join("guest/kernel"))?;
    let patches = Patches::read(&workspace::root().join("guest/kernel/patches"))?;
    let compiler = first_line(Command::new("gcc").arg("--version"))?;
    let linker = first_line(Command::new("ld").arg("--version"))?;

    let mut ingredients = cache::Ingredients::default();
    ingredients.add("source", &source.identity);
    ingredients.add("fragments", fragments.merged());
    for (name, text) in patches.all() {
        ingredients.add(name, text);
    }
    ingredients.add("recipe", RECIPE.join(" "));
    ingredients.add("image", IMAGE);
    ingredients.add("compiler", &compiler);
    ingredients.add("linker", &linker);

    let mut fresh = false;
    let folder = cache::obtain("kernel", &ingredients.digest(), |folder| {
        let build = Build {
            source: &source,
            fragments: &fragments,
            patches: &patches,
            folder,
        };
        fresh = true;
        build.run(&compiler)
    })?;
    Ok((Kernel { folder }, fresh))
}

struct Build<'a> {
    source: &'a Source,
    fragments: &'a Fragments,
    patches: &'a Patches,
    folder: &'a Path,
}

impl Build<'_> {
    /// Leaves `vmlinux`, `System.map`, `config` and `version` in the folder, and nothing else.
    fn run(&self, compiler: &str) -> Result<()> {
        let started = Instant::now();
        println!("guest kernel: {}: unpacking", self.source.identity);
        let tree = self.unpack()?;
        let out = self.folder.join("out");
        for patch in self.patches.apply(&tree)? {
            println!("guest kernel: does not fit this version: {patch}");
        }
        self.configure(&tree, &out)?;
        self.compile(&tree, &out)?;
        self.strip(&out)?;
        fs::copy(out.join(".config"), self.folder.join("config"))?;
        fs::copy(out.join("System.map"), self.folder.join("System.map"))?;
        let release = fs::read_to_string(out.join("include/config/kernel.release"))?;
        let seconds = started.elapsed().as_secs();
        let version = format!(
            "release: {}\nsource: {}\ncompiler: {compiler}\nbuild: {seconds} s\n",
            release.trim(),
            self.source.identity
        );
        fs::write(self.folder.join("version"), version)?;
        for rest in [&tree, &out] {
            fs::remove_dir_all(rest).with_context(|| format!("{}", rest.display()))?;
        }
        fs::remove_file(self.folder.join("log"))?;
        Ok(())
    }

    fn unpack(&self) -> Result<PathBuf> {
        let tree = self.folder.join("source");
        fs::create_dir(&tree)?;
        command::output(
            Command::new("tar")
                .args(["--extract", "--strip-components=1", "--directory"])
                .arg(&tree)
                .arg("--file")
                .arg(&self.source.archive),
        )?;
        Ok(tree)
    }

    /// Everything off, then what the fragments choose; then looks what Kconfig made of it.
    fn configure(&self, tree: &Path, out: &Path) -> Result<()> {
        fs::create_dir(out)?;
        let chosen = out.join("chosen.config");
        fs::write(&chosen, self.fragments.merged())?;
        let mut all = std::ffi::OsString::from("KCONFIG_ALLCONFIG=");
        all.push(&chosen);
        command::output(make(tree, out).arg(all).arg("allnoconfig"))?;
        let config = fs::read_to_string(out.join(".config"))?;
        for lacking in self.fragments.verify(&config)? {
            println!("guest kernel: not in this version: {lacking}");
        }
        Ok(())
    }

    fn compile(&self, tree: &Path, out: &Path) -> Result<()> {
        let path = self.folder.join("log");
        let mut log = File::create(&path)?;
        let jobs = thread::available_parallelism()?.get() + 1;
        let mut child = make(tree, out)
            .arg(format!("--jobs={jobs}"))
            .arg("vmlinux")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot run make")?;
        let output = child.stdout.take().context("make has an output")?;
        let mut progress = Progress::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(log, "{line}")?;
            progress.step(&line);
        }
        progress.end();
        let status = child.wait()?;
        if !status.success() {
            bail!(
                "the kernel's build failed ({status}); the end of {}:\n{}",
                path.display(),
                tail(&path)?
            );
        }
        Ok(())
    }

    /// Drops the symbols, and what a VMM need not load: it loads segments only. The
    /// notes stay.
    fn strip(&self, out: &Path) -> Result<()> {
        let path = self.folder.join("vmlinux");
        command::output(
            Command::new("strip")
                .arg("-o")
                .arg(&path)
                .arg(out.join("vmlinux")),
        )?;
        let mut image = fs::read(&path)?;
        holes::leave_out(&mut image)?;
        fs::write(&path, image).with_context(|| format!("{}", path.display()))
    }
}

/// `make` for an output folder beside the source, without the caller's own make flags.
fn make(tree: &Path, out: &Path) -> Command {
    let mut make = Command::new("make");
    let mut folder = std::ffi::OsString::from("O=");
    folder.push(out);
    make.env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .arg("-C")
        .arg(tree)
        .arg(folder)
        .args(RECIPE);
    make
}

/// Tells how many files are compiled: on a terminal in place, else now and then.
struct Progress {
    started: Instant,
    told: Instant,
    files: usize,
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            told: now,
            files: 0,
            terminal: std::io::stdout().is_terminal(),
        }
    }

    fn step(&mut self, line: &str) {
        self.files += usize::from(is_compilation(line));
        let due = match self.terminal {
            true => Duration::from_millis(200),
            false => REPORT_INTERVAL,
        };
        if self.told.elapsed() >= due {
            self.told = Instant::now();
            self.tell();
        }
    }

    fn tell(&self) {
        let (start, end) = if self.terminal {
            ("\r", "")
        } else {
            ("", "\n")
        };
        let seconds = self.started.elapsed().as_secs();
        print!(
            "{start}guest kernel: {} files compiled, {seconds} s{end}",
            self.files
        );
        // A lost progress line is no reason to fail a build.
        let _ = std::io::stdout().flush();
    }

    fn end(&self) {
        self.tell();
        if self.terminal {
            println!();
        }
    }
}

/// Kbuild's short notes of a C or assembler file, such as `  CC      mm/mmap.o`.
fn is_compilation(line: &str) -> bool {
    matches!(line.split_whitespace().next(), Some("CC" | "AS"))
}

fn first_line(command: &mut Command) -> Result<String> {
    let text = command::output(command)?;
    Ok(text.lines().next().unwrap_or_default().to_string())
}

fn tail(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(25)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilations_are_counted_and_links_are_not() {
        assert!(is_compilation("  CC      mm/mmap.o"));
        assert!(is_compilation("  AS      arch/x86/entry/entry_64.o"));
        assert!(!is_compilation("  LD      vmlinux"));
        assert!(!is_compilation(""));
    }
}
