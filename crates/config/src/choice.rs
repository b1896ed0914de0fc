//! The keys' values that are one word out of a fixed set.

use serde::{Deserialize, Serialize};

/// A value that is written as one of a few words.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// Every word with its value.
    const WORDS: &'static [(&'static str, Self)];
}

macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }

        impl $name {
            /// The word by which a configuration file names the value.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// The program that runs a sandbox's virtual machine.
    Hypervisor {
        /// QEMU's system emulator.
        Qemu = "qemu",
    }
}

choice! {
    /// How strong the wall between a sandbox and the host is, weakest first.
    Tier {
        /// The machine is emulated in software.
        Emulated = "emulated",
        /// KVM on a host that is itself a virtual machine.
        Nested = "nested",
        /// KVM on the processor itself.
        Kvm = "kvm",
    }
}

choice! {
    /// What executes the guest's instructions.
    Accelerator {
        /// KVM where it can run a guest, else emulation.
        Auto = "auto",
        /// KVM, or no sandbox at all.
        Kvm = "kvm",
        /// Emulation, even where KVM is there.
        Emulated = "emulated",
    }
}

choice! {
    /// Whether sandboxes begin as clones of a template.
    Templates {
        /// Where one fits; one that is missing is made.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// Whether the host's kernel may merge equal pages of sandboxes.
    Ksm {
        /// Nothing is merged.
        Off = "off",
        /// What the sandbox's processes have for themselves may be.
        On = "on",
    }
}

choice! {
    /// How long the guest may trust what it has cached of shared files.
    CachePolicy {
        /// For a short time, and data only while a file stays unchanged.
        Auto = "auto",
        /// For ever: nobody else changes the files.
        Always = "always",
        /// Not at all.
        Never = "never",
    }
}

choice! {
    /// The least important event that is still logged.
    LogLevel {
        /// What failed.
        Error = "error",
        /// What may be a mistake.
        Warn = "warn",
        /// Changes of state.
        Info = "info",
        /// What a developer wants to see.
        Debug = "debug",
        /// Every message and call.
        Trace = "trace",
    }
}
