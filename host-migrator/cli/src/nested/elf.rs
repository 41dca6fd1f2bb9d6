// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a program needs to run: its segments without debug information, and its shared libraries.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// Fields of the header of a 64-bit ELF file, as byte offsets.
mod header {
    pub const SEGMENTS_OFFSET: usize = 0x20;
    pub const SECTIONS_OFFSET: usize = 0x28;
    pub const SEGMENT_SIZE: usize = 0x36;
    pub const SEGMENT_COUNT: usize = 0x38;
    pub const SECTION_COUNT: usize = 0x3c;
    pub const END: usize = 0x40;
}
/// Fields of a segment's header.
const SEGMENT_FILE_OFFSET: usize = 0x08;
const SEGMENT_FILE_BYTES: usize = 0x20;

/// The program at `path`, cut after its last segment: what follows is debug information, which can be ten times as
/// large as the program. A file that is not 64-bit ELF is returned unchanged.
///
/// # Errors
/// Those of reading the file.
pub fn program(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::read(path)?;
    if let Some(end) = segments_end(&file)
        && end < file.len()
    {
        file.truncate(end);
        // The sections were cut off.
        file[header::SECTIONS_OFFSET..][..8].fill(0);
        file[header::SECTION_COUNT..header::END].fill(0);
    }
    Ok(file)
}

/// The absolute paths of the shared libraries that the program at `path` loads, the loader itself
/// included; none for a static program.
///
/// # Errors
/// Those of running `ldd`.
pub fn libraries(path: &Path) -> io::Result<Vec<String>> {
    let output = Command::new("ldd").arg(path).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `name => /path (address)`, or `/path (address)` for the loader.
    Ok(text
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(str::to_owned)
        .collect())
}

/// The offset behind the last byte of the headers and of any segment.
fn segments_end(file: &[u8]) -> Option<usize> {
    const CLASS_64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    if !file.starts_with(CLASS_64_LITTLE_ENDIAN) {
        return None;
    }
    let headers = word(file, header::SEGMENTS_OFFSET)?;
    let size = half(file, header::SEGMENT_SIZE)?;
    let count = half(file, header::SEGMENT_COUNT)?;
    let mut end = headers
        .checked_add(size.checked_mul(count)?)?
        .max(header::END);
    for index in 0..count {
        let segment = headers + index * size;
        let offset = word(file, segment.checked_add(SEGMENT_FILE_OFFSET)?)?;
        let bytes = word(file, segment.checked_add(SEGMENT_FILE_BYTES)?)?;
        end = end.max(offset.checked_add(bytes)?);
    }
    (end <= file.len()).then_some(end)
}

fn word(file: &[u8], at: usize) -> Option<usize> {
    let bytes = file.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
}

fn half(file: &[u8], at: usize) -> Option<usize> {
    let bytes = file.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_without_its_sections_still_runs() {
        let exe = std::env::current_exe().unwrap();
        let cut = program(&exe).unwrap();
        assert!(cut.len() < fs::metadata(&exe).unwrap().len() as usize);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut");
        fs::write(&path, cut).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // A process that another test forks at this moment has the file open for writing until its exec.
        let output = loop {
            match Command::new(&path).arg("--list").output() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                output => break output.unwrap(),
            }
        };
        assert!(output.status.success());
    }

    #[test]
    fn the_libraries_of_a_program_are_files() {
        let exe = std::env::current_exe().unwrap();
        let libraries = libraries(&exe).unwrap();
        assert!(libraries.iter().any(|path| path.contains("libc.so")));
        assert!(libraries.iter().any(|path| path.contains("ld-linux")));
        assert!(libraries.iter().all(|path| Path::new(path).is_file()));
    }

    #[test]
    fn a_cut_or_foreign_header_is_no_elf_file() {
        let exe = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(segments_end(b"#!/bin/sh"), None);
        for len in 0..200 {
            assert_eq!(segments_end(&exe[..len]), None);
        }
    }
}
