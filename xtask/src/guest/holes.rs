//! Holes in the kernel's image. Its parts begin at multiples of 2 MiB, and some of
//! its code does as well; in between there is padding. A VMM that loads padding
//! touches the guest's memory for it, which counts for every guest and is copied for
//! every clone. So the segments of the image are split: what is not loaded reads as
//! zeros, as memory does that nobody has written to.

use anyhow::{Context, Result, ensure};

const PAGE: usize = 4096;

/// Padding below this many pages is loaded: each hole is one segment more.
const FEWEST: usize = 16;

/// Bytes that padding is made of: between sections, and within code (INT3).
const PADDING: [u8; 2] = [0, 0xcc];

/// PT_LOAD of elf(5).
const LOAD: u32 = 1;

/// Fields of the ELF header and sizes, of 64-bit files.
const TABLE_OFFSET: usize = 32;
const ENTRY_SIZE: usize = 54;
const ENTRY_COUNT: usize = 56;
const ENTRY: usize = 56;

/// An entry of the table of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// Splits the segments of an image around its padding. Only the table changes.
///
/// # Errors
/// When it is no 64-bit little-endian ELF file, or has no room for the longer table.
pub(crate) fn leave_out(image: &mut [u8]) -> Result<()> {
    ensure!(
        image.starts_with(b"\x7fELF\x02\x01"),
        "the kernel is no 64-bit ELF image"
    );
    let table = number(image, TABLE_OFFSET)? as usize;
    let count = short(image, ENTRY_COUNT)?;
    ensure!(
        short(image, ENTRY_SIZE)? as usize == ENTRY,
        "the kernel's segments are not described as in elf(5)"
    );
    let mut segments = Vec::new();
    for index in 0..count as usize {
        let segment = Segment::read(image, table + index * ENTRY)?;
        match segment.kind {
            LOAD => segments.extend(segment.split(image)?),
            _ => segments.push(segment),
        }
    }
    let end = table + segments.len() * ENTRY;
    let first = segments.iter().map(|segment| segment.offset).min();
    ensure!(
        first.is_some_and(|first| end as u64 <= first),
        "no room for {} segments in the kernel's image",
        segments.len()
    );
    for (index, segment) in segments.iter().enumerate() {
        segment.write(image, table + index * ENTRY);
    }
    let count = u16::try_from(segments.len()).context("too many segments")?;
    image[ENTRY_COUNT..ENTRY_COUNT + 2].copy_from_slice(&count.to_le_bytes());
    Ok(())
}

impl Segment {
    fn read(image: &[u8], at: usize) -> Result<Self> {
        let words = number(image, at)?;
        Ok(Self {
            kind: words as u32,
            flags: (words >> 32) as u32,
            offset: number(image, at + 8)?,
            virtual_address: number(image, at + 16)?,
            physical_address: number(image, at + 24)?,
            file_size: number(image, at + 32)?,
            memory_size: number(image, at + 40)?,
            align: number(image, at + 48)?,
        })
    }

    fn write(&self, image: &mut [u8], at: usize) {
        let numbers = [
            u64::from(self.kind) | u64::from(self.flags) << 32,
            self.offset,
            self.virtual_address,
            self.physical_address,
            self.file_size,
            self.memory_size,
            self.align,
        ];
        for (index, number) in numbers.iter().enumerate() {
            image[at + index * 8..][..8].copy_from_slice(&number.to_le_bytes());
        }
    }

    /// The parts between the holes, in order. What has no content in the file stays
    /// with the last part.
    fn split(&self, image: &[u8]) -> Result<Vec<Self>> {
        let (begin, size) = (self.offset as usize, self.file_size as usize);
        let content = begin
            .checked_add(size)
            .and_then(|end| image.get(begin..end));
        let content = content.context("a segment of the kernel ends after its file")?;
        // Holes begin and end where pages of the guest do.
        let skew = (PAGE - self.physical_address as usize % PAGE) % PAGE;
        let mut parts = Vec::new();
        let mut kept = 0;
        let mut at = skew;
        while at + PAGE <= size {
            let hole = padding(&content[at..]);
            if hole >= FEWEST * PAGE && at + hole < size {
                parts.extend((at > kept).then(|| self.part(kept, at - kept)));
                kept = at + hole;
            }
            at += hole.max(PAGE);
        }
        let mut last = self.part(kept, size - kept);
        last.memory_size = self.memory_size - kept as u64;
        parts.push(last);
        Ok(parts)
    }

    fn part(&self, from: usize, size: usize) -> Self {
        Self {
            offset: self.offset + from as u64,
            virtual_address: self.virtual_address + from as u64,
            physical_address: self.physical_address + from as u64,
            file_size: size as u64,
            memory_size: size as u64,
            ..*self
        }
    }
}

/// How many bytes of whole pages of padding the content begins with.
fn padding(content: &[u8]) -> usize {
    let pages = content.chunks_exact(PAGE);
    let is_padding =
        |page: &&[u8]| PADDING.contains(&page[0]) && page.iter().all(|byte| *byte == page[0]);
    pages.take_while(is_padding).count() * PAGE
}

fn number(image: &[u8], at: usize) -> Result<u64> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u64::from_le_bytes(
        *bytes.context("the kernel's image is cut off")?,
    ))
}

fn short(image: &[u8], at: usize) -> Result<u16> {
    let bytes = image.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u16::from_le_bytes(
        *bytes.context("the kernel's image is cut off")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: usize = 0x1000;

    /// An image of one segment, at an address that is `skew` after a page's begin.
    fn image(content: &[u8], skew: u64, memory_size: usize) -> Vec<u8> {
        let mut image = vec![0; CONTENT];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[TABLE_OFFSET] = 64;
        image[ENTRY_SIZE] = ENTRY as u8;
        image[ENTRY_COUNT] = 1;
        let segment = Segment {
            kind: LOAD,
            flags: 7,
            offset: CONTENT as u64,
            virtual_address: 0xffff_ffff_8100_0000 + skew,
            physical_address: 0x100_0000 + skew,
            file_size: content.len() as u64,
            memory_size: memory_size as u64,
            align: PAGE as u64,
        };
        segment.write(&mut image, 64);
        image.extend_from_slice(content);
        image
    }

    fn segments(image: &[u8]) -> Vec<Segment> {
        let count = short(image, ENTRY_COUNT).unwrap() as usize;
        let at = |index| Segment::read(image, 64 + index * ENTRY).unwrap();
        (0..count).map(at).collect()
    }

    /// What a guest finds in its memory, from the begin of the first segment.
    fn loaded(image: &[u8], base: u64) -> Vec<u8> {
        let mut memory = Vec::new();
        for segment in segments(image) {
            let from = (segment.physical_address - base) as usize;
            assert_eq!(
                segment.virtual_address - segment.physical_address,
                0xffff_ffff_8000_0000
            );
            assert!(from >= memory.len(), "segments are in order and apart");
            memory.resize(from, 0);
            let content = &image[segment.offset as usize..][..segment.file_size as usize];
            memory.extend_from_slice(content);
            memory.resize(from + segment.memory_size as usize, 0);
        }
        memory
    }

    #[test]
    fn padding_is_not_loaded_and_the_rest_is_as_it_was() {
        let mut content = vec![1; 100 * PAGE];
        content[10 * PAGE..30 * PAGE].fill(0xcc);
        content[40 * PAGE..42 * PAGE].fill(0);
        content[50 * PAGE..70 * PAGE].fill(0);
        content[70 * PAGE..90 * PAGE].fill(0xcc);
        for skew in [0, 0x10] {
            let whole = image(&content, skew, content.len() + 5 * PAGE);
            let mut split = whole.clone();
            leave_out(&mut split).unwrap();
            let base = 0x100_0000 + skew;
            let (mut before, after) = (loaded(&whole, base), loaded(&split, base));
            let parts = segments(&split);
            // The page in which one kind of padding follows another is none.
            assert_eq!(parts.len(), if skew == 0 { 3 } else { 4 });
            // A hole reads as zeros.
            let mut at = 0;
            for part in &parts {
                let from = (part.physical_address - base) as usize;
                before[at..from].fill(0);
                at = from + part.memory_size as usize;
            }
            assert_eq!(before, after);
            let saved = content.len() as u64 - parts.iter().map(|part| part.file_size).sum::<u64>();
            assert!(saved >= 57 * PAGE as u64, "{saved}");
        }
    }

    #[test]
    fn what_has_no_padding_is_not_split() {
        let whole = image(&[1; 3 * PAGE + 5], 0, 4 * PAGE);
        let mut split = whole.clone();
        leave_out(&mut split).unwrap();
        assert_eq!(split, whole);
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        assert!(leave_out(&mut b"#!/bin/sh".to_vec()).is_err());
        let mut cut = image(&[1; PAGE], 0, PAGE);
        cut.truncate(CONTENT + 5);
        let error = leave_out(&mut cut).unwrap_err().to_string();
        assert!(error.contains("ends after its file"), "{error}");
    }
}
