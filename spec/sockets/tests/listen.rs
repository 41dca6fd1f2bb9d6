// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who may connect to a socket, and what is replaced at its path. The umask belongs to the process, and tests are
//! threads, so each umask is tried in a new process of this program.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use rustix::fs::{Gid, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::{getegid, geteuid, umask};
use spec_sockets::{Access, ListenError, listen};
use spec_testing::skipped;

const ATTEMPT: &str = "LACUNA_TEST_ATTEMPT";
const FOLDER: &str = "LACUNA_TEST_FOLDER";
const NOBODY: u32 = 65534;

fn mode(bits: u32) -> Access {
    Access {
        mode: Mode::from_raw_mode(bits),
        group: None,
    }
}

fn bits(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// Runs `attempt` of [`process_that_makes_the_attempt`] in a process of its own.
fn attempt(name: &str, folder: &Path, user: Option<u32>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "process_that_makes_the_attempt"])
        .env(ATTEMPT, name)
        .env(FOLDER, folder);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    if user.is_none() {
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    }
    output.status.success()
}

/// Not a test: makes the attempt that another test of this file has asked for.
#[test]
fn process_that_makes_the_attempt() {
    let Ok(attempt) = std::env::var(ATTEMPT) else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let path = folder.join("socket");
    match attempt.split_once(' ') {
        Some(("umask", mask)) => {
            umask(Mode::from_raw_mode(u32::from_str_radix(mask, 8).unwrap()));
            for asked in [0o600, 0o660, 0o666, 0o640, 0o777, 0] {
                let (_listener, file) = listen(&path, mode(asked)).unwrap();
                assert_eq!(bits(&path), asked, "umask {mask}, {asked:o}");
                file.remove().unwrap();
            }
            let (_listener, file) = listen(&path, Access::default()).unwrap();
            assert_eq!(bits(&path), 0o600, "umask {mask}");
            file.remove().unwrap();
        }
        None if attempt == "connect" => drop(UnixStream::connect(&path).unwrap()),
        None if attempt == "foreign-group" => {
            let group = Some(Gid::from_raw(0));
            let result = listen(
                &path,
                Access {
                    group,
                    ..mode(0o660)
                },
            );
            assert!(
                matches!(result, Err(ListenError::Group { .. })),
                "{result:?}"
            );
            assert!(!path.exists(), "no socket is left behind");
        }
        _ => panic!("no such attempt: {attempt}"),
    }
}

#[test]
fn the_mode_is_what_was_asked_for_under_any_umask() {
    for mask in ["0", "022", "077", "0777"] {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            attempt(&format!("umask {mask}"), folder.path(), None),
            "{mask}"
        );
    }
}

#[test]
fn another_user_can_connect_only_if_the_mode_allows_it() {
    if !geteuid().is_root() {
        return skipped("only root can try to connect as another user");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("socket");
    let of_nobody = Access {
        group: Some(Gid::from_raw(NOBODY)),
        ..mode(0o660)
    };
    for (access, gets_in) in [
        (Access::OWNER, false),
        (mode(0o660), false),
        (mode(0o666), true),
        (of_nobody, true),
    ] {
        let (_listener, file) = listen(&path, access).unwrap();
        let group = access.group.unwrap_or(getegid()).as_raw();
        assert_eq!(fs::metadata(&path).unwrap().gid(), group);
        let got_in = attempt("connect", folder.path(), Some(NOBODY));
        assert_eq!(got_in, gets_in, "{access:?}");
        file.remove().unwrap();
    }
}

#[test]
fn a_group_without_the_owner_as_a_member_is_an_error_that_leaves_no_socket() {
    if !geteuid().is_root() {
        return skipped("only root can try to connect as another user");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(attempt("foreign-group", folder.path(), Some(NOBODY)));
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "a file").unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink(path("file"), path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    for name in ["file", "folder", "link", "dangling"] {
        let before = fs::symlink_metadata(path(name)).unwrap().ino();
        let error = listen(&path(name), Access::OWNER).unwrap_err();
        assert!(matches!(error, ListenError::Occupied(_)), "{name}: {error}");
        let after = fs::symlink_metadata(path(name)).unwrap().ino();
        assert_eq!(before, after, "{name}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AlreadyExists);
    }
    assert_eq!(fs::read(path("file")).unwrap(), b"a file");
    assert_eq!(
        folder.path().read_dir().unwrap().count(),
        4,
        "no other file is left"
    );
}

#[test]
fn a_living_socket_stays_and_its_program_does_not_notice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let living = UnixListener::bind(&path).unwrap();
    living.set_nonblocking(true).unwrap();
    let error = listen(&path, Access::OWNER).unwrap_err();
    assert!(matches!(error, ListenError::InUse), "{error}");
    let error = living.accept().unwrap_err();
    assert_eq!(
        error.kind(),
        io::ErrorKind::WouldBlock,
        "the program sees no connection"
    );
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_that_is_bound_and_does_not_listen_yet_is_not_dead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let flags = SocketFlags::CLOEXEC;
    let young = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    bind(&young, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let error = listen(&path, Access::OWNER).unwrap_err();
    assert!(matches!(error, ListenError::InUse), "{error}");
}

#[test]
fn of_many_programs_that_find_a_dead_socket_one_replaces_it_and_keeps_its_place() {
    for round in 0..50 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let start = Barrier::new(8);
        let one = || {
            start.wait();
            listen(&path, Access::OWNER)
        };
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let winners = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(winners, 1, "round {round}: {results:?}");
        let mut lost = results.iter().filter_map(|result| result.as_ref().err());
        assert!(lost.all(|error| matches!(error, ListenError::InUse)));
        let (listener, _) = results.iter().find_map(|it| it.as_ref().ok()).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener.accept().unwrap();
        assert_eq!(
            folder.path().read_dir().unwrap().count(),
            1,
            "no lock is left"
        );
    }
}

#[test]
fn a_file_that_has_the_name_of_the_lock_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lock) = (
        folder.path().join("socket"),
        folder.path().join("socket.lacuna-lock"),
    );
    drop(UnixListener::bind(&path).unwrap());
    fs::write(&lock, "somebody's").unwrap();
    let error = listen(&path, Access::OWNER).unwrap_err();
    assert!(matches!(error, ListenError::Locked(_)), "{error}");
    assert_eq!(fs::read(&lock).unwrap(), b"somebody's");
    // A lock that a killed program left behind is used again.
    fs::write(&lock, "").unwrap();
    let (_listener, _) = listen(&path, Access::OWNER).unwrap();
    assert!(!lock.exists());
}

#[test]
fn a_socket_is_removed_and_another_file_of_its_name_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (_listener, file) = listen(&path, Access::OWNER).unwrap();
    fs::remove_file(&path).unwrap();
    file.remove().unwrap();
    fs::write(&path, "another's").unwrap();
    file.remove().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"another's");
    fs::remove_file(&path).unwrap();
    let (_listener, file) = listen(&path, Access::OWNER).unwrap();
    file.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_too_long_is_named_with_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let error = listen(&folder.path().join("x".repeat(107)), Access::OWNER).unwrap_err();
    assert!(matches!(error, ListenError::TooLong(_)));
    assert!(error.to_string().contains("107"), "{error}");
    assert!(listen(Path::new(""), Access::OWNER).is_err());
}
