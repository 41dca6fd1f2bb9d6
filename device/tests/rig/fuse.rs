// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file in a FUSE file system of this program, which answers only requests to open and close the file.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use spec_testing::bytes::{longs, words};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;
/// Bytes of the file.
pub const BYTES: u64 = 16 << 20;

/// The mounted file system with its one file.
pub struct Fuse {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<BTreeSet<u32>>>,
}

impl Fuse {
    /// Mounts the file system.
    ///
    /// # Errors
    /// If this user may not mount it.
    pub fn mount() -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let folder = tempfile::tempdir()?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let (target, options) = (c_path(folder.path()), CString::new(options).unwrap());
        // SAFETY: all arguments are zero-terminated strings that live as long as the call.
        let result = unsafe {
            libc::mount(
                c"never".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let asked = Arc::<Mutex<BTreeSet<u32>>>::default();
        let questions = Arc::clone(&asked);
        thread::spawn(move || serve(&device, &questions));
        Ok(Self { folder, asked })
    }

    /// Opens the file.
    pub fn open(&self) -> File {
        let path = self.folder.path().join("file");
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// The numbers of the unanswered requests.
    pub fn unanswered(&self) -> BTreeSet<u32> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let target = c_path(self.folder.path());
        // SAFETY: a zero-terminated string that lives as long as the call. MNT_FORCE ends each wait for an answer with
        // an error.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_FORCE) };
        // SAFETY: as above.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Answers requests until the file system is unmounted.
fn serve(device: &File, unanswered: &Mutex<BTreeSet<u32>>) {
    let mut request = vec![0; 1 << 20];
    loop {
        // SAFETY: reads into a buffer of that length.
        let read = unsafe {
            let start = request.as_mut_ptr().cast();
            libc::read(device.as_raw_fd(), start, request.len())
        };
        if read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if read < 40 {
            return;
        }
        let opcode = u32::from_le_bytes(request[4..8].try_into().unwrap());
        let answer = match opcode {
            // Version 7.31, no features.
            INIT => [words(&[7, 31, 0, 0, 0, 1 << 16, 1]), vec![0; 36]].concat(),
            LOOKUP => entry(),
            OPEN => vec![0; 16],
            FLUSH | RELEASE => Vec::new(),
            FORGET | BATCH_FORGET => continue,
            other => {
                unanswered.lock().unwrap().insert(other);
                continue;
            }
        };
        let mut reply = words(&[16 + answer.len() as u32, 0]);
        reply.extend_from_slice(&request[8..16]);
        reply.extend(answer);
        // SAFETY: writes that many bytes of the buffer. Fails if the request's process waits no more.
        unsafe { libc::write(device.as_raw_fd(), reply.as_ptr().cast(), reply.len()) };
    }
}

/// A regular file that all may read and write. Its attributes must not be cached.
fn entry() -> Vec<u8> {
    let node = longs(&[2, 0, 0, 0, 0]);
    let attributes = longs(&[2, BYTES, BYTES / 512, 0, 0, 0]);
    let rest = words(&[0, 0, 0, libc::S_IFREG | 0o666, 1, 0, 0, 0, 4096, 0]);
    [node, attributes, rest].concat()
}
