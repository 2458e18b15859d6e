//! Watches the configuration file.

use std::{fs, path::PathBuf, sync::mpsc, time::Duration};

use tokio::time;
use tracing::{error, info, warn};

use super::{
    State,
    config::{Config, Source},
    events::Recorder,
    worker::Input,
};

/// How often to read the file. It is small, and a mounted ConfigMap changes by a swap of links that is easily missed by
/// watches of the file itself.
const INTERVAL: Duration = Duration::from_secs(1);

/// A change of the file that is not usable leaves all as it is, and is told.
pub async fn watch(path: PathBuf, running: Config, inputs: mpsc::Sender<Input>, (state, recorder): (State, Recorder)) {
    let mut running = running;
    let mut known = fs::read(&path).ok();
    loop {
        time::sleep(INTERVAL).await;
        let found = fs::read(&path).ok();
        if found == known {
            continue;
        }
        known = found;
        match Source::File(path.clone()).read() {
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
