// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order in which a guest has touched its pages, in a file beside its snapshot: the next restore loads these first.
//!
//! ```text
//!  0          8         16       32
//!  +----------+---------+--------+-----------------+- - -
//!  | LACTOUCH | version | id     | page number u64 | ...
//!  +----------+---------+--------+-----------------+- - -
//! ```
//!
//! Numbers are little-endian; the id is the snapshot's. The list needs no checksum: whatever it says decides only which page is
//! loaded first, and a number that is no page of the snapshot is passed over. So it may be cut off anywhere, as when the process is
//! killed that writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use spec::file::SnapshotId;

const MAGIC: &[u8; 8] = b"LACTOUCH";
const VERSION: u64 = 1;
const ID_AT: usize = 16;
const HEADER_BYTES: usize = ID_AT + SnapshotId::BYTES;
/// Bytes that are written at once: what a kill can lose.
const AT_ONCE: usize = 64 * 8;

/// Writes down which pages are touched, in their order.
#[derive(Debug)]
pub struct TouchRecorder(Mutex<BufWriter<File>>);

/// Where the list of the snapshot at `snapshot` is: beside it.
pub fn touched_path(snapshot: &Path) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(".touched");
    name.into()
}

impl TouchRecorder {
    /// Begins a new list for snapshot `id` at `path`, in place of an old one.
    ///
    /// # Errors
    /// That of the file.
    pub fn create(path: &Path, id: SnapshotId) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        let mut writer = BufWriter::with_capacity(AT_ONCE, file.open(path)?);
        writer.write_all(&header(id))?;
        Ok(Self(Mutex::new(writer)))
    }

    /// The guest has touched `page`.
    pub(super) fn note(&self, page: u64) {
        // The list is a help, and the guest waits for its page.
        if let Err(error) = self.0.lock().write_all(&page.to_le_bytes()) {
            log::debug!("a touched page is not recorded: {error}");
        }
    }

    /// All that was noted is in the file.
    pub(super) fn flush(&self) {
        if let Err(error) = self.0.lock().flush() {
            log::warn!("the touched pages are not all recorded: {error}");
        }
    }
}

/// Reads the list at `path`, at most `most` pages of it. It is empty if there is none for snapshot `id`.
///
/// # Errors
/// That of the file.
pub fn read_touched(path: &Path, id: SnapshotId, most: u64) -> io::Result<Vec<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    let longest = (HEADER_BYTES as u64).saturating_add(most.saturating_mul(8));
    file.take(longest).read_to_end(&mut bytes)?;
    Ok(match bytes.split_at_checked(HEADER_BYTES) {
        Some((found, pages)) if *found == header(id) => {
            let (pages, _) = pages.as_chunks();
            pages.iter().map(|page| u64::from_le_bytes(*page)).collect()
        }
        _ => Vec::new(),
    })
}

fn header(id: SnapshotId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..ID_AT].copy_from_slice(&VERSION.to_le_bytes());
    bytes[ID_AT..].copy_from_slice(&id.to_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_for_its_snapshot_only_and_may_be_cut_off_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = touched_path(&folder.path().join("guest"));
        assert!(path.ends_with("guest.touched"));
        let [id, other] = [7, 8].map(|byte| SnapshotId::new([byte; SnapshotId::BYTES]));
        assert!(read_touched(&path, id, 10).unwrap().is_empty());
        let recorder = TouchRecorder::create(&path, id).unwrap();
        [5, 3, 9].iter().for_each(|page| recorder.note(*page));
        recorder.flush();
        assert_eq!(read_touched(&path, id, 10).unwrap(), [5, 3, 9]);
        assert_eq!(read_touched(&path, id, 2).unwrap(), [5, 3]);
        assert!(read_touched(&path, other, 10).unwrap().is_empty());
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let pages = length.saturating_sub(HEADER_BYTES) / 8;
            assert_eq!(read_touched(&path, id, 10).unwrap(), [5, 3, 9][..pages]);
        }
    }
}
