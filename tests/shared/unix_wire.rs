// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wires between a source and a destination at unix sockets. They carry file descriptors, too, and have faults.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use spec::stream::{
    GREETING_BYTES, SECTION_HEADER_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind,
};
use spec_sockets::rights;

use super::wire::Fault;

/// A wire to `destination` that has `fault` at the first section of `kind`. Returns where it begins: in `folder`.
pub fn faulty(destination: &str, folder: &Path, kind: SectionKind, fault: Fault) -> String {
    let path = destination
        .strip_prefix("unix:")
        .expect("a unix socket")
        .to_owned();
    let begin = folder.join("wire");
    let listener = UnixListener::bind(&begin).unwrap();
    thread::spawn(move || {
        let (near, far) = (listener.accept().unwrap().0, UnixStream::connect(path));
        let far = far.unwrap();
        carry(&near, &far, STREAM_HEADER_BYTES, kind, fault);
        carry(&far, &near, GREETING_BYTES, kind, fault);
    });
    format!("unix:{}", begin.display())
}

/// Carries what begins with `start` bytes and goes on in sections.
fn carry(from: &UnixStream, to: &UnixStream, start: usize, kind: SectionKind, fault: Fault) {
    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let was_cut = carry_sections(&from, &to, start, kind, fault).is_ok();
        // What was sent before the end arrives before the end.
        let how = match was_cut {
            true => Shutdown::Both,
            false => Shutdown::Write,
        };
        let _ = to.shutdown(how);
        let _ = from.shutdown(if was_cut {
            Shutdown::Both
        } else {
            Shutdown::Read
        });
    });
}

/// Ends well if it was cut.
fn carry_sections(
    from: &UnixStream,
    to: &UnixStream,
    start: usize,
    kind: SectionKind,
    fault: Fault,
) -> io::Result<()> {
    let mut bytes = vec![0; start];
    let mut hit = false;
    loop {
        let files = read(from, &mut bytes)?;
        write(to, &bytes, &files)?;
        let mut header = [0; SECTION_HEADER_BYTES];
        let files = read(from, &mut header)?;
        let section = SectionHeader::from_bytes(&header).expect("a section");
        if section.kind == kind && !hit {
            hit = true;
            match fault {
                Fault::Cut(after) => return write(to, &header[..after], &[]),
                stall => stall.stall(),
            }
        }
        write(to, &header, &files)?;
        bytes.resize(section.length as usize, 0);
    }
}

/// Fills `bytes`. Returns the descriptors that came with them.
fn read(from: &UnixStream, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    let mut filled = 0;
    while filled < bytes.len() {
        match rights::receive_some(from, &mut bytes[filled..], &mut files)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(files)
}

/// Writes `bytes`; the descriptors of `files` go with the first of them.
fn write(mut to: &UnixStream, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let sent = rights::send_some(to, bytes, &files)?;
    to.write_all(&bytes[sent..])
}
