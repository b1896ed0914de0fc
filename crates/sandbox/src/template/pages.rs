//! The digest of a sparse image: of its pages that hold anything, each with its
//! place. What is a hole on one file system and written zeros on another is the
//! same.

use std::{fs::File, io, os::unix::fs::FileExt};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use sha2::{Digest, Sha256};

use super::fit::hex;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Bytes that are read at once.
const CHUNK: usize = 64 * PAGE;

/// What an image holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// SHA-256 in hexadecimal digits.
    pub(super) sha256: String,
    /// Bytes in pages that are not empty.
    pub(super) bytes: u64,
}

/// Reads the image.
pub(super) fn contents(image: &File) -> io::Result<Contents> {
    let size = image.metadata()?.len();
    let mut digest = Sha256::new();
    digest.update(size.to_le_bytes());
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Some((begin, end)) = next_data(image, at)? {
        // Extents need not begin where pages do.
        let mut offset = begin - begin % PAGE as u64;
        while offset < end {
            let wanted = (end - offset)
                .next_multiple_of(PAGE as u64)
                .min(CHUNK as u64);
            let wanted = wanted.min(size - offset) as usize;
            image.read_exact_at(&mut chunk[..wanted], offset)?;
            for (number, page) in (0..).zip(chunk[..wanted].chunks(PAGE)) {
                if page.iter().any(|byte| *byte != 0) {
                    digest.update((offset + number * PAGE as u64).to_le_bytes());
                    digest.update(page);
                    bytes += page.len() as u64;
                }
            }
            offset += wanted as u64;
        }
        at = offset;
    }
    Ok(Contents {
        sha256: hex(&digest.finalize()),
        bytes,
    })
}

/// The next stretch from `at` on that may hold something.
fn next_data(image: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let begin = match lseek(image, at as i64, Whence::SeekData) {
        // Nothing but holes.
        Err(Errno::ENXIO) => return Ok(None),
        other => other?,
    };
    let end = lseek(image, begin, Whence::SeekHole)?;
    Ok(Some((begin as u64, end as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64, pages: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, byte) in pages {
            file.write_all_at(&[*byte; 10], *at).unwrap();
        }
        file
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_nothing_else_is() {
        const SIZE: u64 = 4 << 20;
        let first = contents(&image(SIZE, &[(5000, 1), (3 << 20, 2)])).unwrap();
        assert_eq!(first.bytes, 2 * PAGE as u64);
        let zeros = [
            (0, 0),
            (5000, 1),
            (1 << 20, 0),
            (3 << 20, 2),
            (SIZE - 10, 0),
        ];
        assert_eq!(contents(&image(SIZE, &zeros)).unwrap(), first);
        for other in [
            image(SIZE, &[(5001, 1), (3 << 20, 2)]),
            image(SIZE, &[(5000, 1), ((3 << 20) + PAGE as u64, 2)]),
            image(SIZE, &[(5000, 1)]),
            image(SIZE + 1, &[(5000, 1), (3 << 20, 2)]),
        ] {
            assert_ne!(contents(&other).unwrap().sha256, first.sha256);
        }
        assert_eq!(contents(&image(0, &[])).unwrap().bytes, 0);
        assert_eq!(contents(&image(100, &[(90, 1)])).unwrap().bytes, 100);
    }
}
