//! What the kernel says about the processor.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufRead, BufReader},
};

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Processor {
    pub(crate) model: String,
    flags: Vec<String>,
}

impl Processor {
    /// Reads no further than the first processor: the kernel makes the text
    /// while it is read, and large hosts have hundreds.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(BufReader::new(File::open("/proc/cpuinfo")?))
    }

    fn parse(text: impl BufRead) -> io::Result<Self> {
        let mut processor = Self::default();
        for line in text.lines() {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            match name.trim() {
                "model name" => processor.model = value.trim().to_owned(),
                "flags" => {
                    processor.flags = value.split_whitespace().map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        Ok(processor)
    }

    #[cfg(test)]
    pub(crate) fn with_flags(flags: &str) -> Self {
        Self {
            model: String::new(),
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }
}

/// Whether the kernel trusts the time stamp counter: it takes an unstable one
/// off the list of clocks.
pub(crate) fn counter_is_stable() -> bool {
    let list = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    fs::read_to_string(list)
        .unwrap_or_default()
        .split_whitespace()
        .any(|clock| clock == "tsc")
}

/// Model and features, as they are.
impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.model, self.flags.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_processor_counts() {
        let text = "processor\t: 0\nmodel name\t: One (R)\nflags\t\t: fpu vmx\nbugs\t\t:\n\n\
                    processor\t: 1\nmodel name\t: Two\nflags\t\t: fpu svm\n";
        let processor = Processor::parse(text.as_bytes()).unwrap();
        assert_eq!(processor.model, "One (R)");
        assert!(processor.has("vmx") && !processor.has("svm") && !processor.has("vm"));
    }

    #[test]
    fn this_host_has_a_processor() {
        assert!(Processor::read().unwrap().has("fpu"));
    }
}
