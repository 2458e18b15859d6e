//! What programs count, as OpenMetrics text.

use std::sync::Arc;

use hyper::StatusCode;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};

use crate::http::{self, Page};

/// Counts by one label.
pub type Counters = Family<[(&'static str, &'static str); 1], Counter>;
/// Values by one label.
pub type Gauges = Family<[(&'static str, &'static str); 1], Gauge>;

/// Registers metrics while making them.
#[derive(Debug, Default)]
pub struct Make(Registry);

impl Make {
    /// Registers `metric`.
    pub fn put<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// A count; its name gets `_total` at the end.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.put(name, help, Counter::default())
    }

    /// A value that rises and falls.
    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.put(name, help, Gauge::default())
    }

    /// Times, in kube-proxy's buckets: from 1 ms, doubling.
    pub fn seconds(&mut self, name: &str, help: &str) -> Histogram {
        self.put(name, help, Histogram::new(exponential_buckets(0.001, 2.0, 15)))
    }

    /// All that were made.
    pub fn done(self) -> Registered {
        Registered(Arc::new(self.0))
    }
}

/// The metrics of a program; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registered(Arc<Registry>);

impl Registered {
    /// All of them as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        encode(&mut text, &self.0).unwrap_or_default();
        text
    }

    /// The same as a page.
    pub fn page(&self) -> Page {
        let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        http::page(StatusCode::OK, openmetrics, self.text())
    }
}
