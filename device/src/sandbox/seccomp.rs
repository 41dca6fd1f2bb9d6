// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that each kind of thread may make. Any other ends the process, or is logged.
//!
//! The process gets a filter before it starts threads, so that no thread is ever without one; each thread then adds its
//! own, narrower one. A few calls fail instead of ending the process, because libraries try them and can do without.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::mode::SandboxMode;

/// The kind of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Waits for the others and for the end.
    Main,
    /// Serves front ends and their rings.
    FrontEnds,
    /// Serves the control socket.
    Control,
    /// Serves the guest's agent.
    Agent,
    /// Tells the balloon the time.
    Ticker,
    /// Serves metrics.
    Metrics,
    /// Waits for signals.
    Signals,
}

impl Group {
    const ALL: [Self; 7] = [
        Self::Main,
        Self::FrontEnds,
        Self::Control,
        Self::Agent,
        Self::Ticker,
        Self::Metrics,
        Self::Signals,
    ];

    /// The calls that it needs beyond [`EVERY_THREAD`].
    fn calls(self) -> &'static [&'static [Call]] {
        match self {
            Self::Main => &[HANG_UP],
            Self::FrontEnds => &[SERVE_SOCKETS, GUEST_MEMORY, RINGS, BEGIN_THREADS],
            Self::Control => &[SERVE_SOCKETS, GUEST_MEMORY, MEMORY_FILES],
            Self::Agent => &[SERVE_SOCKETS, GUEST_MEMORY],
            Self::Ticker => &[GUEST_MEMORY],
            Self::Metrics => &[SERVE_SOCKETS],
            Self::Signals => &[],
        }
    }

    /// Its name in a list of threads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FrontEnds => "front-ends",
            Self::Control => "control",
            Self::Agent => "agent",
            Self::Ticker => "ticker",
            Self::Metrics => "metrics",
            Self::Signals => "signals",
        }
    }
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// No filter can be made for this machine.
    #[error("no filter: {0}")]
    Compile(#[from] BackendError),
    /// The kernel refuses it.
    #[error("seccomp: {0}")]
    Install(#[from] seccompiler::Error),
}

/// The filters of a process, ready to be installed.
#[derive(Debug)]
pub struct Filters {
    process: BpfProgram,
    /// Makes calls fail that libraries try. `None` if nothing is forbidden.
    refusals: Vec<BpfProgram>,
    groups: BTreeMap<Group, BpfProgram>,
}

impl Filters {
    /// The filters for this machine. `mode` says what they do; it is not [`SandboxMode::Off`].
    ///
    /// # Errors
    /// [`SeccompError::Compile`] on a processor that the compiler does not know.
    pub fn new(mode: SandboxMode) -> Result<Self, SeccompError> {
        let otherwise = otherwise(mode);
        let of = |group: Group| {
            [EVERY_THREAD]
                .into_iter()
                .chain(group.calls().iter().copied())
        };
        let enforced = mode == SandboxMode::Enforce;
        let tried = if enforced { TRIED } else { &[] };
        let all = Group::ALL.into_iter().flat_map(of);
        let all = all.chain([BEGIN_THREADS, BEGIN_FILTERS, tried]);
        let refuse = |calls, error: i32| {
            let error = SeccompAction::Errno(error.unsigned_abs());
            compile([calls], SeccompAction::Allow, error)
        };
        Ok(Self {
            process: compile(all, otherwise.clone(), SeccompAction::Allow)?,
            refusals: if enforced {
                vec![
                    refuse(TRIED, libc::EACCES)?,
                    refuse(TRIED_NEWER, libc::ENOSYS)?,
                ]
            } else {
                Vec::new()
            },
            groups: Group::ALL
                .into_iter()
                .map(|group| {
                    let calls = of(group).chain([tried]);
                    Ok((
                        group,
                        compile(calls, otherwise.clone(), SeccompAction::Allow)?,
                    ))
                })
                .collect::<Result<_, SeccompError>>()?,
        })
    }

    /// Restricts the calling thread, and the threads that it starts, to the calls that any thread needs.
    ///
    /// # Errors
    /// [`SeccompError::Install`]
    pub fn confine_process(&self) -> Result<(), SeccompError> {
        seccompiler::apply_filter(&self.process)?;
        for refusal in &self.refusals {
            seccompiler::apply_filter(refusal)?;
        }
        Ok(())
    }

    /// Restricts the calling thread, and the threads that it starts, to the calls that `group` needs.
    ///
    /// # Errors
    /// [`SeccompError::Install`]
    pub fn confine_thread(&self, group: Group) -> Result<(), SeccompError> {
        match self.groups.get(&group) {
            Some(filter) => Ok(seccompiler::apply_filter(filter)?),
            None => Ok(()),
        }
    }
}

/// Restricts the calling process to the calls that [`super::remover`] needs.
///
/// # Errors
/// [`SeccompError`]
pub fn confine_remover(mode: SandboxMode) -> Result<(), SeccompError> {
    let calls = [EVERY_THREAD, REMOVE_SOCKETS];
    let filter = compile(calls, otherwise(mode), SeccompAction::Allow)?;
    Ok(seccompiler::apply_filter(&filter)?)
}

/// What happens to a call that no rule allows.
fn otherwise(mode: SandboxMode) -> SeccompAction {
    match mode {
        SandboxMode::Enforce => SeccompAction::KillProcess,
        SandboxMode::Log | SandboxMode::Off => SeccompAction::Log,
    }
}

fn compile(
    calls: impl IntoIterator<Item = &'static [Call]>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls.into_iter().flatten() {
        let conditions = rules.entry(call.number).or_default();
        for when in call.when {
            let mask = SeccompCmpOp::MaskedEq(when.mask);
            let equals = match when.equals {
                Equals::Value(value) => value,
                Equals::OwnProcess => std::process::id().into(),
            };
            let condition = SeccompCondition::new(when.argument, when.length(), mask, equals)?;
            conditions.push(SeccompRule::new(vec![condition])?);
        }
    }
    let machine = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, matched, machine)?.try_into()?)
}

/// A system call, and when it is allowed: always, or if one of its arguments has a given value.
struct Call {
    number: c_long,
    when: &'static [When],
}

/// An argument. Only the bits in `mask` count.
struct When {
    argument: u8,
    mask: u64,
    equals: Equals,
}

#[derive(Clone, Copy)]
enum Equals {
    Value(u64),
    /// The number of this process.
    OwnProcess,
}

impl When {
    /// Most arguments are 32-bit numbers, whose upper bits are undefined. Pointers have 64 bits.
    fn length(&self) -> SeccompCmpArgLen {
        if self.mask > ALL_BITS {
            SeccompCmpArgLen::Qword
        } else {
            SeccompCmpArgLen::Dword
        }
    }
}

const fn call(number: c_long) -> Call {
    Call { number, when: &[] }
}

const ALL_BITS: u64 = u32::MAX as u64;

/// Allows the call if the argument with this number is one of the values.
macro_rules! is {
    ($argument:literal, $($value:expr),+) => {
        &[$(When { argument: $argument, mask: ALL_BITS, equals: Equals::Value($value as u64) }),+]
    };
}

/// Memory that is not executable.
const NOT_EXECUTABLE: &[When] = &[When {
    argument: 2,
    mask: libc::PROT_EXEC as u64,
    equals: Equals::Value(0),
}];
/// Starting a thread of this process, not another process.
const THREAD: &[When] = &[When {
    argument: 0,
    mask: libc::CLONE_THREAD as u64,
    equals: Equals::Value(libc::CLONE_THREAD as u64),
}];
/// A signal to a thread of this process: an abort sends one.
const OWN_PROCESS: &[When] = &[When {
    argument: 0,
    mask: ALL_BITS,
    equals: Equals::OwnProcess,
}];
/// A message to the socket's peer, not to another address.
const NO_ADDRESS: &[When] = &[When {
    argument: 4,
    mask: u64::MAX,
    equals: Equals::Value(0),
}];

/// Memory, locks, time, waiting, and the end of a thread or the process.
const EVERY_THREAD: &[Call] = &[
    call(libc::SYS_brk),
    call(libc::SYS_clock_gettime),
    call(libc::SYS_clock_nanosleep),
    call(libc::SYS_close),
    call(libc::SYS_exit),
    call(libc::SYS_exit_group),
    FCNTL,
    call(libc::SYS_futex),
    call(libc::SYS_getpid),
    call(libc::SYS_getrandom),
    call(libc::SYS_gettid),
    call(libc::SYS_madvise),
    Call {
        number: libc::SYS_mmap,
        when: NOT_EXECUTABLE,
    },
    Call {
        number: libc::SYS_mprotect,
        when: NOT_EXECUTABLE,
    },
    call(libc::SYS_mremap),
    call(libc::SYS_munmap),
    call(libc::SYS_nanosleep),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_poll),
    call(libc::SYS_ppoll),
    Call {
        number: libc::SYS_prctl,
        when: is!(0, libc::PR_SET_NAME, libc::PR_SET_VMA),
    },
    call(libc::SYS_read),
    call(libc::SYS_recvfrom),
    call(libc::SYS_restart_syscall),
    call(libc::SYS_rt_sigaction),
    call(libc::SYS_rt_sigprocmask),
    call(libc::SYS_rt_sigreturn),
    call(libc::SYS_sched_getaffinity),
    call(libc::SYS_sched_yield),
    // The handler of a signal wakes the thread that waits for it, from whichever thread the signal interrupts.
    Call {
        number: libc::SYS_sendto,
        when: NO_ADDRESS,
    },
    call(libc::SYS_sigaltstack),
    Call {
        number: libc::SYS_tgkill,
        when: OWN_PROCESS,
    },
    call(libc::SYS_write),
];

/// Starting threads, but no processes.
const BEGIN_THREADS: &[Call] = &[
    Call {
        number: libc::SYS_clone,
        when: THREAD,
    },
    // Fails, because its flags cannot be checked.
    call(libc::SYS_clone3),
    call(libc::SYS_rseq),
    call(libc::SYS_set_robust_list),
];

/// Installing the filters of threads.
const BEGIN_FILTERS: &[Call] = &[
    Call {
        number: libc::SYS_prctl,
        when: is!(0, libc::PR_SET_NO_NEW_PRIVS),
    },
    call(libc::SYS_seccomp),
];

/// Accepting and closing connections.
const SERVE_SOCKETS: &[Call] = &[
    call(libc::SYS_accept4),
    call(libc::SYS_getsockopt),
    Call {
        number: libc::SYS_ioctl,
        when: is!(1, libc::FIONBIO),
    },
    call(libc::SYS_recvmsg),
    call(libc::SYS_sendmsg),
    call(libc::SYS_setsockopt),
    call(libc::SYS_shutdown),
];

const FCNTL: Call = Call {
    number: libc::SYS_fcntl,
    when: is!(
        1,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GET_SEALS,
        libc::F_ADD_SEALS
    ),
};

/// Mapping and unmapping memory of other processes.
const GUEST_MEMORY: &[Call] = &[
    call(libc::SYS_fallocate),
    call(libc::SYS_fstat),
    call(libc::SYS_fstatfs),
    call(libc::SYS_lseek),
    call(libc::SYS_newfstatat),
    call(libc::SYS_statx),
];

/// Rings, and new connections to the vhost-user crate's threads for each front end.
const RINGS: &[Call] = &[
    call(libc::SYS_bind),
    call(libc::SYS_connect),
    call(libc::SYS_epoll_create1),
    call(libc::SYS_epoll_ctl),
    call(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_epoll_wait),
    call(libc::SYS_eventfd2),
    call(libc::SYS_listen),
    call(libc::SYS_preadv2),
    Call {
        number: libc::SYS_socket,
        when: is!(0, libc::AF_UNIX),
    },
];

/// Maps are handed out as memory files.
const MEMORY_FILES: &[Call] = &[
    call(libc::SYS_ftruncate),
    call(libc::SYS_memfd_create),
    call(libc::SYS_pwrite64),
];

/// Hanging up on front ends at the end.
const HANG_UP: &[Call] = &[call(libc::SYS_shutdown)];

/// Removing sockets from the file system. The process that may do this does nothing else.
const REMOVE_SOCKETS: &[Call] = &[
    // It checks the file first: another one of the same name stays.
    call(libc::SYS_newfstatat),
    call(libc::SYS_statx),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_unlink),
    call(libc::SYS_unlinkat),
];

/// These fail: the C library examines the machine, a panic looks for the program's symbols.
const TRIED: &[Call] = &[
    call(libc::SYS_getcwd),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_open),
    call(libc::SYS_openat),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_readlink),
    call(libc::SYS_readlinkat),
];

/// These fail as on a kernel that does not have them: the C library falls back to [`libc::SYS_clone`].
const TRIED_NEWER: &[Call] = &[call(libc::SYS_clone3)];
