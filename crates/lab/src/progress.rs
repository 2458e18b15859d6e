//! What a starting lab tells the terminal that started it: lines of JSON over a pipe.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Context, Result},
    state::Running,
};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Progress {
    /// A step is done: what is there now.
    Step(String),
    /// Everything is up. The last line.
    Ready(Running),
    /// The lab could not come up: why. The last line.
    Failed(String),
}

impl Progress {
    /// Sends the line over standard output.
    ///
    /// # Errors
    /// Nobody listens any more: whoever asked for the lab is gone.
    pub fn send(&self) -> Result<()> {
        let mut line = serde_json::to_vec(self).map_err(io::Error::from).trying(|| "report progress")?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line).and_then(|()| out.flush()).trying(|| "report progress")
    }
}
