//! Processes that may take too long.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use super::Result;

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By itself and well, after that time.
    Done(Duration),
    /// It was ended because its time was up.
    TimeUp(Duration),
}

/// Waits for `child`, which is described by `what`, but not for ever.
pub fn finish(mut child: Child, what: &str, patience: Duration) -> Result<End> {
    let begin = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(End::Done(begin.elapsed())),
            Some(status) => return Err(format!("{what}: {status}").into()),
            None if begin.elapsed() > patience => {
                child.kill()?;
                child.wait()?;
                return Ok(End::TimeUp(begin.elapsed()));
            }
            None => sleep(Duration::from_millis(1)),
        }
    }
}

/// What a process prints; `None` if its time was up.
pub fn output(command: &mut Command, patience: Duration) -> Result<Option<String>> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().ok_or("no output")?;
    let reader = spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let end = finish(child, &format!("{command:?}"), patience)?;
    let text = reader.join().map_err(|_| "reading panicked")??;
    Ok((!matches!(end, End::TimeUp(_))).then_some(text))
}
