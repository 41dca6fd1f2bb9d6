// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel does with free pages, and whether their content matters.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use spec::agent::{Settings, VERSION};

use crate::memory;
use crate::preparation::Preparation;

/// The settings of this kernel, for the host.
pub fn detect(preparation: Preparation) -> Settings {
    let command_line = fs::read_to_string("/proc/cmdline");
    let mut flags = match &command_line {
        Ok(line) => of_command_line(line) | of_log(&kernel_log(), line),
        Err(_) => Settings::UNKNOWN,
    };
    if preparation.drop_caches {
        flags |= Settings::DROPS_CACHES;
    }
    if preparation.compact {
        flags |= Settings::COMPACTS;
    }
    let pages = memory::zones()
        .ok()
        .and_then(|zones| zones.last().map(|zone| zone.end()));
    Settings {
        version: VERSION,
        page_size: rustix::param::page_size() as u32,
        pages: pages.unwrap_or(0),
        flags,
    }
}

/// Page poisoning is off unless the command line enables it, however the kernel was built.
fn of_command_line(line: &str) -> u32 {
    match switch(line, "page_poison") {
        Some(true) => Settings::POISON,
        _ => 0,
    }
}

/// The command line or the kernel's build enables zeroing. The result of both is in the kernel's log: `mem auto-init:
/// stack:off, heap alloc:on, heap free:off`. When the log no longer has its first lines, only the command line is left.
fn of_log(log: &str, line: &str) -> u32 {
    let found = log.lines().find(|line| line.contains("mem auto-init:"));
    let is_on = |in_log: &str, parameter: &str| match found {
        Some(found) => found.contains(in_log),
        None => switch(line, parameter) == Some(true),
    };
    let mut flags = 0;
    if is_on("heap alloc:on", "init_on_alloc") {
        flags |= Settings::INIT_ON_ALLOC;
    }
    if is_on("heap free:on", "init_on_free") {
        flags |= Settings::INIT_ON_FREE;
    }
    flags
}

/// The value of the last valid `name=value` on the command line. Like the kernel, this ignores invalid values, treats `-`
/// in names as `_`, and ignores what follows `--`, which is for the first process.
fn switch(line: &str, name: &str) -> Option<bool> {
    words(line)
        .iter()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.split_once('='))
        .filter(|(parameter, _)| parameter.replace('-', "_") == name)
        .filter_map(|(_, value)| truth(value))
        .last()
}

/// The words of the command line. Spaces in quotes do not end a word, and quotes are removed.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match words.last_mut() {
            _ if c == '"' => quoted = !quoted,
            Some(word) if quoted || !c.is_ascii_whitespace() => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words
}

/// A truth value as the kernel reads it (`kstrtobool`): by its first letters.
fn truth(value: &str) -> Option<bool> {
    let mut letters = value.chars().map(|c| c.to_ascii_lowercase());
    match (letters.next()?, letters.next()) {
        ('1' | 'y' | 't' | 'e', _) | ('o', Some('n')) => Some(true),
        ('0' | 'n' | 'f' | 'd', _) | ('o', Some('f')) => Some(false),
        _ => None,
    }
}

/// The kernel's log. Each read returns one record, until there are no more.
fn kernel_log() -> String {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg");
    let Ok(mut file) = file else {
        return String::new();
    };
    let (mut log, mut record) = (String::new(), [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(length) if length != 0 => log.push_str(&String::from_utf8_lossy(&record[..length])),
            // Records were overwritten during the read. The next read continues after them.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
            _ => return log,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_switch_of_the_command_line_counts_in_all_its_spellings() {
        for (line, flags) in [
            ("quiet page_poison=1", Settings::POISON),
            ("page_poison=on", Settings::POISON),
            ("page_poison=Y quiet", Settings::POISON),
            ("page-poison=1", Settings::POISON),
            ("quiet \"page_poison=1\"", Settings::POISON),
            ("page-poison=\"on\"", Settings::POISON),
            ("name=\"a page_poison=1\"", 0),
            ("page_poison=1 page_poison=off", 0),
            ("page_poison=1 page-poison=off", 0),
            ("page_poison=1 page_poison=maybe", Settings::POISON),
            ("page_poison=1 page_poison", Settings::POISON),
            ("quiet -- page_poison=1", 0),
            ("page_poison=0", 0),
            ("page_poison", 0),
            ("xpage_poison=1", 0),
            ("", 0),
        ] {
            assert_eq!(of_command_line(line), flags, "{line}");
        }
    }

    #[test]
    fn what_the_kernel_logged_of_zeroing_counts_before_what_it_was_told() {
        let log = "6,1,0,-;mem auto-init: stack:off, heap alloc:on, heap free:off\n";
        assert_eq!(of_log(log, "init_on_free=1"), Settings::INIT_ON_ALLOC);
        assert_eq!(of_log("", "init_on_free=1"), Settings::INIT_ON_FREE);
        assert_eq!(of_log("", "init-on-alloc=1"), Settings::INIT_ON_ALLOC);
        assert_eq!(of_log("", "init_on_alloc=0"), 0);
    }

    #[test]
    fn this_machine_has_settings() {
        let settings = detect(Preparation {
            compact: true,
            ..Preparation::default()
        });
        assert_ne!(settings.pages, 0);
        assert_ne!(settings.flags & Settings::COMPACTS, 0);
        assert_eq!(settings.flags & Settings::DROPS_CACHES, 0);
    }
}
