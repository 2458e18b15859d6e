//! Copying between two TCP sockets through pipes in the kernel: the bytes never come into this program.

use std::{io, os::fd::OwnedFd};

use podwire_kernel::socket::{Pipe, fill, finish_sending, pour};

/// So many empty pipes are kept for whoever needs one next.
const SPARE: usize = 64;
/// So often in a row one direction may copy before it is another connection's turn.
const TURNS: usize = 16;

/// Empty pipes. A connection has one only while data is on its way.
#[derive(Debug, Default)]
pub struct Pipes(Vec<Pipe>);

impl Pipes {
    fn take(&mut self) -> io::Result<Pipe> {
        self.0.pop().map_or_else(Pipe::new, Ok)
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < SPARE {
            self.0.push(pipe);
        }
    }
}

/// One end of a connection. What is known is what the last event said, until an operation would block.
#[derive(Debug)]
pub struct End {
    pub socket: OwnedFd,
    pub readable: bool,
    pub writable: bool,
}

impl End {
    pub const fn new(socket: OwnedFd) -> Self {
        Self { socket, readable: false, writable: false }
    }
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Half {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// The sender has finished.
    ended: bool,
    /// The receiver was told so.
    told: bool,
}

/// Why copying stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Until a socket becomes readable or writable.
    Blocked,
    /// Others' turn; there is more.
    Turn,
    /// Both have finished.
    Finished,
    /// For want of open files.
    Starved,
}

impl Half {
    /// Copies what can be copied.
    ///
    /// # Errors
    /// The connection is broken; or no pipe can be made.
    pub fn copy(&mut self, from: &mut End, to: &mut End, pipes: &mut Pipes) -> io::Result<Stop> {
        for _ in 0..TURNS {
            if self.held > 0 {
                if !self.pour(to)? {
                    return Ok(Stop::Blocked);
                }
            } else if self.ended {
                self.give_back(pipes);
                if !self.told {
                    self.told = true;
                    finish_sending(&to.socket)?;
                }
                return Ok(Stop::Finished);
            } else if !self.fill(from, pipes)? {
                self.give_back(pipes);
                return Ok(Stop::Blocked);
            }
        }
        Ok(Stop::Turn)
    }

    /// Moves from the pipe to a socket; false when it would block.
    fn pour(&mut self, to: &mut End) -> io::Result<bool> {
        let Some(pipe) = &self.pipe else { return Ok(false) };
        if to.writable {
            match pour(pipe, self.held, &to.socket) {
                Ok(moved) => self.held -= moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(to.writable)
    }

    /// Moves from a socket to the empty pipe; false when it would block.
    fn fill(&mut self, from: &mut End, pipes: &mut Pipes) -> io::Result<bool> {
        if from.readable {
            let pipe = match self.pipe.take() {
                Some(pipe) => pipe,
                None => pipes.take()?,
            };
            let moved = fill(&from.socket, self.pipe.insert(pipe));
            match moved {
                Ok(0) => self.ended = true,
                Ok(moved) => self.held = moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => from.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(from.readable)
    }

    fn give_back(&mut self, pipes: &mut Pipes) {
        if let Some(pipe) = self.pipe.take() {
            pipes.give_back(pipe);
        }
    }
}
