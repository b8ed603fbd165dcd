//! Runs the command that is to be watched, so that it is watched before its first instruction, and
//! as the user who called sudo.
//!
//! The program starts itself with an internal verb. That process waits for a byte on a pipe, gives
//! up its privileges and becomes the command; meanwhile its process id is put on the list of watched
//! processes.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use anyhow::Context;
use rustix::io::FdFlags;
use rustix::process::{Gid, Uid};

use crate::cli::BECOME;
use crate::config::{Become, Caller};

/// Exit code of shells for a program that was not found.
const NOT_FOUND: u8 = 127;
/// Exit code of shells for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// The command's process, not yet the command.
pub(super) struct Waiting {
    child: Child,
    release: PipeWriter,
}

/// Starts a process that becomes the command when it is released.
pub(super) fn start(command: &[OsString], caller: Option<Caller>) -> anyhow::Result<Waiting> {
    let (reader, release) = io::pipe().context("cannot make a pipe")?;
    rustix::io::fcntl_setfd(&reader, FdFlags::empty()).context("cannot pass a pipe on")?;
    let who = caller.map_or("-".to_owned(), |caller| format!("{}:{}", caller.uid, caller.gid));
    let child = Command::new("/proc/self/exe")
        .args([OsStr::new(BECOME), OsStr::new(&reader.as_raw_fd().to_string()), who.as_ref()])
        .arg("--")
        .args(command)
        .spawn()
        .context("cannot start a process for the command")?;
    Ok(Waiting { child, release })
}

impl Waiting {
    /// Its process id, which the command will have.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it become the command.
    pub(super) fn release(mut self) -> anyhow::Result<Child> {
        self.release.write_all(b"!").context("the process for the command ended early")?;
        Ok(self.child)
    }
}

/// The exit code that stands for how the command ended: its own, or 128 + the signal.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The other side of `start`: returns only when the command could not be run.
pub fn become_command(order: &Become) -> u8 {
    // SAFETY: the internal verb is only started by `start`, which passes a pipe under this number
    // that nothing else in this process knows of.
    let release = unsafe { OwnedFd::from_raw_fd(order.release) };
    let mut byte = [0];
    if io::PipeReader::from(release).read_exact(&mut byte).is_err() {
        // The monitor could not start and has said why.
        return 1;
    }
    let Some((program, arguments)) = order.command.split_first() else { return 2 };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(caller) = order.caller
        && let Err(error) = become_caller(caller, &mut command)
    {
        super::say(&format!("mcpspy: cannot become user {}: {error}", caller.uid));
        return NOT_EXECUTABLE;
    }
    let error = command.exec();
    super::say(&format!("mcpspy: cannot run {}: {error}", program.display()));
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Gives up root. This process has one thread, so what the kernel does per thread is enough.
fn become_caller(caller: Caller, command: &mut Command) -> io::Result<()> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = User::find(&passwd, caller.uid);
    let mut groups = vec![caller.gid];
    if let Some(user) = &user {
        let list = std::fs::read_to_string("/etc/group").unwrap_or_default();
        groups.extend(groups_of(&list, user.name).filter(|&gid| gid != caller.gid));
        command.env("HOME", user.home).env("USER", user.name).env("LOGNAME", user.name);
    }
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// A line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
struct User<'a> {
    name: &'a str,
    home: &'a str,
}

impl<'a> User<'a> {
    fn find(passwd: &'a str, uid: u32) -> Option<Self> {
        let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.find_map(|fields| match fields.as_slice() {
            &[name, _, id, _, _, home, ..] if id.parse() == Ok(uid) => Some(User { name, home }),
            _ => None,
        })
    }
}

/// Groups of which the user is a member, from `/etc/group`.
fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:100:Ann,,,:/home/ann:/bin/sh\n";
        assert_eq!(User::find(passwd, 1000), Some(User { name: "ann", home: "/home/ann" }));
        assert_eq!(User::find(passwd, 7), None);
        let group = "root:x:0:\ndocker:x:998:bob,ann\nannex:x:5:annex\nbad\nwheel:x:10:ann\n";
        assert_eq!(groups_of(group, "ann").collect::<Vec<_>>(), [998, 10]);
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
