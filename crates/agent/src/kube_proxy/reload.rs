//! Watches the configuration file.

use std::{path::PathBuf, sync::mpsc};

use tracing::{error, info, warn};

use super::{
    State,
    config::{Config, Source},
    worker::Input,
};
use crate::{events::Recorder, file_watch::FileWatch};

/// A change of the file that is not usable leaves all as it is, and is told.
pub async fn watch(path: PathBuf, running: Config, inputs: mpsc::Sender<Input>, (state, recorder): (State, Recorder)) {
    let mut running = running;
    let mut file = FileWatch::new(path);
    loop {
        // Read once more, with the words of the first time for what is wrong.
        drop(file.changed().await);
        match Source::File(file.path().to_owned()).read() {
            Ok(config) => {
                if config.fixed != running.fixed {
                    warn!(
                        "changes of clientConnection, hostnameOverride, addresses to listen on and oomScoreAdj take \
                         effect at the next start"
                    );
                }
                info!(mode = config.mode, "the configuration changed");
                running = config.clone();
                if inputs.send(Input::Config(Box::new(config))).is_err() {
                    return;
                }
            }
            Err(reason) => {
                error!("the changed configuration is not used, going on as before: {reason:#}");
                recorder.node("InvalidConfiguration", format!("going on with the configuration before: {reason:#}"));
                state.metrics.config_errors.inc();
            }
        }
    }
}
