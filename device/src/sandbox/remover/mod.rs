// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A process that removes the socket files of the sandboxed one, and does nothing else.
//!
//! Landlock gives the right to remove files only for a folder and everything below it. With this right, a process that
//! was taken over could remove every file of its user there. So only a child has the right. It is started before the
//! sandbox is entered, knows the files by device and inode, and is told the number of the file to remove.
//!
//! The child has no descriptor except its socket, and only SIGKILL ends it early. It ends with the process that it
//! works for, however that ends. It removes nothing at that moment: the next program that wants the path replaces the
//! dead socket, and may have done so already.

mod fork;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use spec_sockets::SocketFile;

use super::entry::SandboxError;
use super::mode::SandboxMode;
use super::{landlock, limits, seccomp};

/// How long an answer may take. A removal takes three system calls, but the file system may be slow.
const PATIENCE: Duration = Duration::from_secs(2);
/// The child's message when it is ready. Any other message is the reason why it is not.
const READY: &[u8] = b"ready";
/// The longest reason that is read.
const LONGEST_REASON: usize = 512;
/// Asks the child to end: no file has this number.
const END: u32 = u32::MAX;

/// Removes the files that it was started with.
#[derive(Debug)]
pub struct Remover {
    files: Vec<SocketFile>,
    channel: Mutex<OwnedFd>,
    /// Becomes readable when the child has ended, where the kernel can say so.
    ended: Option<OwnedFd>,
}

impl Remover {
    /// Starts the child, which restricts itself as `mode` says; `mode` is not [`SandboxMode::Off`]. Call this before
    /// there are other threads.
    ///
    /// # Errors
    /// If the process has other threads, if it can have no child, or if the child cannot restrict itself.
    pub fn start(files: Vec<SocketFile>, mode: SandboxMode) -> io::Result<Self> {
        let child = fork::start(|channel| serve(channel, &files, mode))?;
        let channel = child.channel;
        let mut said = [0; LONGEST_REASON];
        let length = receive(&channel, &mut said)?;
        match &said[..length] {
            READY => {}
            [] => return Err(io::Error::other("it ended at once")),
            why => return Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
        }
        set_socket_timeout(&channel, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            files,
            channel: Mutex::new(channel),
            ended: child.ended,
        })
    }

    /// Lets the child remove `file` and waits for that. It is not an error if the file was removed before.
    ///
    /// # Errors
    /// As [`SocketFile::remove`]; [`io::ErrorKind::NotFound`] for a file that the child was not started with; and if
    /// the child does not answer.
    pub fn remove(&self, file: &SocketFile) -> io::Result<()> {
        let number = self.files.iter().position(|it| it == file);
        let number = number.and_then(|it| u32::try_from(it).ok());
        let number = number.ok_or(io::ErrorKind::NotFound)?;
        let channel = self.channel.lock();
        send(&*channel, &number.to_le_bytes(), SendFlags::NOSIGNAL)?;
        loop {
            let mut answer = [0; 8];
            if receive(&channel, &mut answer)? != answer.len() {
                return Err(io::Error::other("the process that removes it has ended"));
            }
            let [a, b, c, d, error @ ..] = answer;
            // The answer to an earlier request that timed out says nothing about this one.
            if u32::from_le_bytes([a, b, c, d]) == number {
                return match i32::from_le_bytes(error) {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error)),
                };
            }
        }
    }

    /// Lets the child remove all remaining files. Errors are ignored, because the process is ending.
    pub fn remove_all(&self) {
        for file in &self.files {
            let _ = self.remove(file);
        }
    }
}

/// Ends the child and waits for its end, so that nothing of this program goes on after it.
impl Drop for Remover {
    fn drop(&mut self) {
        let channel = self.channel.get_mut();
        if send(&*channel, &END.to_le_bytes(), SendFlags::NOSIGNAL).is_ok() {
            while receive(channel, &mut [0; 8]).is_ok_and(|length| length > 0) {}
        }
        // A process closes its descriptors before it has ended.
        if let Some(ended) = &self.ended {
            let mut ended = [PollFd::new(ended, PollFlags::IN)];
            let _ = poll(&mut ended, PATIENCE.try_into().ok().as_ref());
        }
    }
}

/// The child: restricts itself, and removes files as it is told, until the parent has gone.
fn serve(channel: OwnedFd, files: &[SocketFile], mode: SandboxMode) {
    let Ok(channel) = fork::close_others(channel) else {
        return;
    };
    let restricted = restrict(files, mode).map_err(|error| error.to_string());
    let (message, is_ready) = match &restricted {
        Ok(()) => (READY, true),
        Err(why) => (&why.as_bytes()[..why.len().min(LONGEST_REASON)], false),
    };
    // If the message cannot be sent, the parent sees the child's end.
    if send(&channel, message, SendFlags::NOSIGNAL).is_err() || !is_ready {
        return;
    }
    // Each file once: afterwards its inode number may belong to another file.
    let mut files: Vec<Option<&SocketFile>> = files.iter().map(Some).collect();
    let mut asked = [0; 4];
    while receive(&channel, &mut asked).is_ok_and(|length| length == asked.len()) {
        let number = u32::from_le_bytes(asked);
        let Some(file) = usize::try_from(number)
            .ok()
            .and_then(|it| files.get_mut(it))
        else {
            return;
        };
        let error = match file.take().map(SocketFile::remove) {
            None | Some(Ok(())) => 0,
            Some(Err(error)) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        let mut answer = [0; 8];
        answer[..4].copy_from_slice(&asked);
        answer[4..].copy_from_slice(&error.to_le_bytes());
        if send(&channel, &answer, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
}

/// Leaves the child only the rights that it needs to remove `files`.
fn restrict(files: &[SocketFile], mode: SandboxMode) -> Result<(), SandboxError> {
    if mode == SandboxMode::Enforce {
        limits::keep_private();
        landlock::restrict(&folders(files))?;
    }
    Ok(seccomp::confine_remover(mode)?)
}

/// The folders that `files` lie in.
fn folders(files: &[SocketFile]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = files
        .iter()
        .filter_map(|file| file.path().parent())
        .map(|folder| match folder.as_os_str().is_empty() {
            true => Path::new(".").into(),
            false => folder.into(),
        })
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

/// Receives one message; 0 bytes if the other side has gone.
fn receive(channel: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(channel, &mut *bytes, RecvFlags::empty()) {
            Ok((length, _)) => return Ok(length),
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(0),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}
