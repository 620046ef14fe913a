//! Batches, made ahead of the step that takes them. A thread of its own draws their noise and turns their pixels, so that a
//! GPU does not stand still for it. What is in a batch follows from (seed, step) alone, whoever makes it and when.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, Scope};

use tch::{Device, Tensor};
use windowpane_diffusion::noise::{self, Domain};

use crate::config::TrainConfig;
use crate::data::{EpochOrder, ImageSet};
use crate::error::{Error, Result};

/// Batches that wait for their step. Two are enough for a step that now and then is faster than a batch.
const AHEAD: usize = 2;

/// The images of one pass through the network.
pub(super) struct Batch {
    /// Clean images, `[n, c, h, w]`.
    pub(super) x0_nchw: Tensor,
    /// Their noise, `[n, c, h, w]`.
    pub(super) eps_nchw: Tensor,
    /// Timesteps, `[n]` i64.
    pub(super) t_n: Tensor,
    /// Labels, `[n]` i64.
    pub(super) y_n: Tensor,
}

/// Makes batches on the host.
#[derive(Clone)]
pub(super) struct Maker<'a> {
    config: &'a TrainConfig,
    images: &'a ImageSet,
    device: Device,
    order: EpochOrder,
}

// === impl Batch ===

impl Batch {
    /// On a device. From page-locked memory the copy is only put into the device's queue, and nobody waits for it.
    pub(super) fn to_device(&self, device: Device) -> Self {
        let moved = |x: &Tensor| x.to_device_(device, x.kind(), true, false);
        Self {
            x0_nchw: moved(&self.x0_nchw),
            eps_nchw: moved(&self.eps_nchw),
            t_n: moved(&self.t_n),
            y_n: moved(&self.y_n),
        }
    }
}

// === impl Maker ===

impl<'a> Maker<'a> {
    /// Of a run's images; in page-locked memory where the device is a GPU.
    pub(super) fn new(config: &'a TrainConfig, images: &'a ImageSet, device: Device) -> Self {
        Self { config, images, device, order: EpochOrder::new(config.recipe.train.seed, images.len()) }
    }

    /// The images of micro-batch `micro` of `step`.
    pub(super) fn batch(&mut self, step: u64, micro: usize) -> Batch {
        let table = self.config.recipe.train;
        let (n, seed, at) = (table.batch, table.seed, step as u32);
        let (model, timesteps) = (&self.config.model, self.config.recipe.diffusion.schedule.steps);
        let (elements, width) = (model.elements(), model.width);
        let first = step * (n * table.accumulate) as u64 + (micro * n) as u64;
        let draw = |domain, i: usize| noise::uniform(domain, seed, at, (micro * n + i) as u64);
        let mut x0 = Vec::with_capacity(n * elements);
        let (mut t, mut y) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for i in 0..n {
            let index = self.order.at(first + i as u64);
            let pixels = self.images.image(index).iter().map(|&p| f32::from(p) / 127.5 - 1.0);
            let begin = x0.len();
            x0.extend(pixels);
            if table.flip && draw(Domain::Augment, i) < 0.5 {
                x0[begin..].chunks_mut(width).for_each(<[f32]>::reverse);
            }
            t.push((draw(Domain::TrainTime, i) * timesteps as f32) as i64);
            let dropped = draw(Domain::LabelDrop, i) < table.label_drop;
            let label =
                if model.classes == 0 || dropped { model.classes as i64 } else { self.images.labels[index] };
            y.push(label);
        }
        // Micro-batches of a step share its noise, one part each.
        let mut eps = vec![0.0; n * elements];
        noise::fill_normal_from(Domain::TrainNoise, (seed, at), (micro * n * elements) as u64, &mut eps);
        let shape = [n as i64, model.channels as i64, model.height as i64, width as i64];
        let locked = |x: Tensor| if self.device.is_cuda() { x.pin_memory(self.device) } else { x };
        Batch {
            x0_nchw: locked(Tensor::from_slice(&x0).view(shape)),
            eps_nchw: locked(Tensor::from_slice(&eps).view(shape)),
            t_n: locked(Tensor::from_slice(&t)),
            y_n: locked(Tensor::from_slice(&y)),
        }
    }

    /// Every batch from step `from` on, in order, from a thread of their own. It ends when nobody takes them any more.
    /// Errors: the system starts no thread.
    pub(super) fn start<'scope>(
        mut self,
        scope: &'scope Scope<'scope, 'a>,
        from: u64,
    ) -> Result<Receiver<Batch>> {
        let (sender, batches) = sync_channel(AHEAD);
        let table = self.config.recipe.train;
        let work = move || {
            for step in from..table.steps {
                for micro in 0..table.accumulate {
                    if sender.send(self.batch(step, micro)).is_err() {
                        return;
                    }
                }
            }
        };
        let thread = Builder::new().name("windowpane-batches".to_owned());
        thread.spawn_scoped(scope, work).map_err(Error::Thread)?;
        Ok(batches)
    }
}
