//! The ops over candle's tensors: what `metal_fwd` and `bwd` of each op call.
//!
//! A backward pass here is made of launches over detached storage, so that it leaves no graph behind.

use super::device::resident;
use super::gpu::{Scalar, View};
use super::rows::{Picked, column_sums};
use super::{attention, rms_norm, rope, swiglu};
use crate::ops::{Heads, RopeTable};
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, MetalDevice, MetalStorage, Result, Shape, Storage, Tensor, bail};
use candle_metal_kernels::metal::Buffer;
use std::sync::Arc;

/// Where a tensor lies, held while a launch over it is encoded.
pub(super) struct Place<'a> {
    storage: MetalStorage,
    layout: &'a Layout,
}

impl<'a> Place<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            // Shares the memory.
            Storage::Metal(storage) => Ok(Self { storage: storage.clone(), layout }),
            _ => bail!("a Metal kernel was given a tensor that is elsewhere"),
        }
    }

    pub(super) fn view(&self) -> Result<View<'_, Buffer>> {
        view(&self.storage, self.layout)
    }
}

/// The elements of a contiguous storage.
fn view<'a>(storage: &'a MetalStorage, layout: &Layout) -> Result<View<'a, Buffer>> {
    use candle_core::backend::BackendStorage;
    let Some((start, _)) = layout.contiguous_offsets() else { bail!("a Metal kernel was given strided elements") };
    Ok(View { memory: storage.buffer(), offset: start * storage.dtype().size_in_bytes() })
}

/// Memory that an op has written, as a storage.
pub(super) fn storage(device: &MetalDevice, memory: Arc<Buffer>, count: usize, dtype: DType) -> MetalStorage {
    MetalStorage::new(memory, device.clone(), count, dtype)
}

/// The same as a tensor without a graph.
pub(super) fn tensor(device: &MetalDevice, memory: Arc<Buffer>, shape: impl Into<Shape>, dtype: DType) -> Tensor {
    let shape = shape.into();
    let storage = Storage::Metal(storage(device, memory, shape.elem_count(), dtype));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// A contiguous storage as a tensor of its own.
pub(super) fn whole(storage: &MetalStorage, layout: &Layout) -> Result<Tensor> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a Metal op was given strided elements") };
    let all = Tensor::from_storage(Storage::Metal(storage.clone()), end, BackpropOp::none(), false);
    all.narrow(0, start, end - start)?.reshape(layout.shape())
}

/// The memory of a tensor that nobody else has, as the result of an op.
fn into_storage(tensor: &Tensor) -> Result<(MetalStorage, Shape)> {
    let tensor = tensor.contiguous()?;
    let place = Place::of(&tensor)?;
    if place.layout.start_offset() != 0 {
        bail!("a Metal op made a part of a larger tensor");
    }
    Ok((place.storage.clone(), tensor.shape().clone()))
}

/// The type that all of these tensors have.
fn scalar_of(dtypes: &[DType]) -> Result<Scalar> {
    match dtypes {
        [first, rest @ ..] if rest.iter().all(|dtype| dtype == first) => Scalar::of(*first),
        _ => bail!("a Metal kernel was given tensors of several types: {dtypes:?}"),
    }
}

/// Forward passes, called by candle with storages, in the order of each op's inputs.
pub(crate) mod forward {
    use super::*;
    use candle_core::backend::{BackendDevice, BackendStorage};

    /// `x: [.., width]`, `w: [width]`.
    pub(crate) fn rms_norm(
        (x, lx): (&MetalStorage, &Layout),
        (w, lw): (&MetalStorage, &Layout),
        eps: f32,
    ) -> Result<(MetalStorage, Shape)> {
        let (elements, width) = (lx.shape().elem_count(), lw.shape().elem_count());
        let norm = rms_norm::Norm {
            x: view(x, lx)?,
            w: view(w, lw)?,
            scalar: scalar_of(&[x.dtype(), w.dtype()])?,
            rows: elements / width,
            width,
            eps,
        };
        let y = norm.forward(x.device())?;
        Ok((storage(x.device(), y, elements, x.dtype()), lx.shape().clone()))
    }

    /// `gate, up` of one shape.
    pub(crate) fn swiglu(
        (gate, lg): (&MetalStorage, &Layout),
        (up, lu): (&MetalStorage, &Layout),
    ) -> Result<(MetalStorage, Shape)> {
        let scalar = scalar_of(&[gate.dtype(), up.dtype()])?;
        let count = lg.shape().elem_count();
        let op = swiglu::Gate { gate: view(gate, lg)?, up: view(up, lu)?, scalar, count };
        let y = op.forward(gate.device())?;
        Ok((storage(gate.device(), y, count, gate.dtype()), lg.shape().clone()))
    }

    /// `x w^T + b` of `x: [tokens, in]`, `w: [out, in]`, `b: [out]`: candle's product, which sums in f32.
    pub(crate) fn linear(
        (x, lx): (&MetalStorage, &Layout),
        (w, lw): (&MetalStorage, &Layout),
        bias: Option<(&MetalStorage, &Layout)>,
    ) -> Result<(MetalStorage, Shape)> {
        let y = whole(x, lx)?.matmul(&whole(w, lw)?.t()?)?;
        match bias {
            Some((b, lb)) => into_storage(&y.broadcast_add(&whole(b, lb)?)?),
            None => into_storage(&y),
        }
    }

    /// Rows `ids` of `table: [vocab, width]`.
    pub(crate) fn embedding((table, layout): (&MetalStorage, &Layout), ids: &[u32]) -> Result<(MetalStorage, Shape)> {
        let ids = table.device().storage_from_slice(ids).map(|storage| (storage, Layout::contiguous(ids.len())))?;
        let rows = table.index_select(&ids.0, layout, &ids.1, 0)?;
        Ok((rows, Shape::from((ids.1.shape().elem_count(), layout.shape().dims2()?.1))))
    }

    /// `x: [tokens, width]`.
    pub(crate) fn rope(
        (x, layout): (&MetalStorage, &Layout),
        angles: &RopeTable,
        positions: &Arc<[u32]>,
        sign: f32,
    ) -> Result<(MetalStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        let rotated = rotate(x.device(), (view(x, layout)?, x.dtype(), width), angles, positions, sign)?;
        Ok((storage(x.device(), rotated, tokens * width, x.dtype()), layout.shape().clone()))
    }

    /// `q: [tokens, query * dim]`, `k, v: [tokens, key_value * dim]`; gives `lse: [query, tokens]` beside the outputs.
    pub(crate) fn attention(
        [(q, lq), (k, lk), (v, lv)]: [(&MetalStorage, &Layout); 3],
        heads: Heads,
        offsets: &[usize],
    ) -> Result<(MetalStorage, Shape, Tensor)> {
        let op = attention::Attention {
            q: view(q, lq)?,
            k: view(k, lk)?,
            v: view(v, lv)?,
            scalar: scalar_of(&[q.dtype(), k.dtype(), v.dtype()])?,
            heads,
            offsets,
        };
        let device = q.device();
        let mixed = op.forward(device)?;
        let (tokens, width) = lq.shape().dims2()?;
        let lse = tensor(device, mixed.lse, (heads.query, tokens), DType::F32);
        Ok((storage(device, mixed.out, tokens * width, q.dtype()), lq.shape().clone(), lse))
    }
}

fn rotate(
    device: &MetalDevice,
    (x, dtype, width): (View<Buffer>, DType, usize),
    angles: &RopeTable,
    positions: &Arc<[u32]>,
    sign: f32,
) -> Result<Arc<Buffer>> {
    let (cosines, sines) = (resident(device, &angles.cos)?, resident(device, &angles.sin)?);
    let places = resident(device, positions)?;
    let rotation = rope::Rotation {
        cosines: View::all(&*cosines),
        sines: View::all(&*sines),
        positions: View::all(&*places),
        tokens: positions.len(),
        heads: width / (2 * angles.half),
        half: angles.half,
        sign,
    };
    rotation.apply(device, x, Scalar::of(dtype)?)
}

/// Backward passes, called with the tensors of each op's `bwd`.
pub(crate) mod backward {
    use super::*;

    /// Gradients of `x` and `w` for the gradient `g` of the output.
    pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, g: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let (device, g) = (x.device().as_metal_device()?, g.contiguous()?);
        let (at_x, at_w, at_g) = (Place::of(x)?, Place::of(w)?, Place::of(&g)?);
        let (elements, width) = (x.elem_count(), w.elem_count());
        let norm = rms_norm::Norm {
            x: at_x.view()?,
            w: at_w.view()?,
            scalar: scalar_of(&[x.dtype(), w.dtype(), g.dtype()])?,
            rows: elements / width,
            width,
            eps,
        };
        let got = norm.backward(device, at_g.view()?)?;
        Ok((tensor(device, got.x, x.shape(), x.dtype()), tensor(device, got.w, w.shape(), w.dtype())))
    }

    /// Gradients of `gate` and `up`.
    pub(crate) fn swiglu(gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
        let (device, g) = (gate.device().as_metal_device()?, g.contiguous()?);
        let (at_gate, at_up, at_g) = (Place::of(gate)?, Place::of(up)?, Place::of(&g)?);
        let op = swiglu::Gate {
            gate: at_gate.view()?,
            up: at_up.view()?,
            scalar: scalar_of(&[gate.dtype(), up.dtype(), g.dtype()])?,
            count: gate.elem_count(),
        };
        let [dgate, dup] = op.backward(device, at_g.view()?)?;
        Ok((tensor(device, dgate, gate.shape(), gate.dtype()), tensor(device, dup, up.shape(), up.dtype())))
    }

    /// The gradient of what was rotated by `-sign`.
    pub(crate) fn rope(g: &Tensor, angles: &RopeTable, positions: &Arc<[u32]>, sign: f32) -> Result<Tensor> {
        let (device, g) = (g.device().as_metal_device()?, g.contiguous()?);
        let place = Place::of(&g)?;
        let width = g.dim(1)?;
        let rotated = rotate(device, (place.view()?, g.dtype(), width), angles, positions, sign)?;
        Ok(tensor(device, rotated, g.shape(), g.dtype()))
    }

    /// Gradients of the input and the weights of a linear layer, each where it is wanted.
    pub(crate) fn linear(
        x: &Tensor,
        w: &Tensor,
        g: &Tensor,
        wanted: [bool; 2],
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?.detach();
        let dx = wanted[0].then(|| g.matmul(&w.detach())).transpose()?;
        let dw = wanted[1].then(|| g.t()?.matmul(&x.detach())).transpose()?;
        Ok((dx, dw))
    }

    /// The gradient of a bias: the sum over the rows of `g: [tokens, out]`, in f32.
    pub(crate) fn bias(g: &Tensor) -> Result<Tensor> {
        let (device, g) = (g.device().as_metal_device()?, g.contiguous()?);
        let (place, (rows, width)) = (Place::of(&g)?, g.dims2()?);
        let sums = column_sums(device, (place.view()?, Scalar::of(g.dtype())?), rows, width)?;
        Ok(tensor(device, sums, width, g.dtype()))
    }

    /// The gradient of `table` whose rows `ids` were picked, for their gradient `g: [ids, width]`.
    pub(crate) fn embedding(table: &Tensor, ids: &[u32], g: &Tensor) -> Result<Tensor> {
        let (device, g) = (g.device().as_metal_device()?, g.contiguous()?);
        let (place, (total, width)) = (Place::of(&g)?, table.dims2()?);
        let picked = Picked { parts: place.view()?, scalar: Scalar::of(g.dtype())?, width, rows: ids };
        Ok(tensor(device, picked.gather_sums(device, total)?, table.shape(), g.dtype()))
    }

    /// The same added to f32 sums of the table's shape.
    pub(crate) fn add_picked(sums: &Tensor, ids: &[u32], g: &Tensor) -> Result<()> {
        let (device, g) = (g.device().as_metal_device()?, g.contiguous()?);
        let (at_sums, at_g, (total, width)) = (Place::of(sums)?, Place::of(&g)?, sums.dims2()?);
        let picked = Picked { parts: at_g.view()?, scalar: Scalar::of(g.dtype())?, width, rows: ids };
        picked.add_to(device, at_sums.view()?, total)
    }

    /// What the forward pass was given, and what it gave.
    pub(crate) struct Attention<'a> {
        /// `[tokens, query * dim]`, `[tokens, key_value * dim]` twice.
        pub inputs: [&'a Tensor; 3],
        /// `[tokens, query * dim]`.
        pub out: &'a Tensor,
        /// `[query, tokens]`.
        pub lse: &'a Tensor,
        /// How a token is cut into heads.
        pub heads: Heads,
        /// Sequence `i` is `offsets[i]..offsets[i + 1]`.
        pub offsets: &'a [usize],
    }

    impl Attention<'_> {
        /// Gradients of `q`, `k` and `v`.
        pub(crate) fn gradients(&self, g: &Tensor) -> Result<[Tensor; 3]> {
            let [q, k, v] = self.inputs;
            let (device, g) = (q.device().as_metal_device()?, g.contiguous()?);
            let (at_q, at_k, at_v) = (Place::of(q)?, Place::of(k)?, Place::of(v)?);
            let (at_out, at_lse, at_g) = (Place::of(self.out)?, Place::of(self.lse)?, Place::of(&g)?);
            let op = attention::Attention {
                q: at_q.view()?,
                k: at_k.view()?,
                v: at_v.view()?,
                scalar: scalar_of(&[q, k, v, self.out, &g].map(Tensor::dtype))?,
                heads: self.heads,
                offsets: self.offsets,
            };
            let [dq, dk, dv] = op.backward(device, at_out.view()?, at_lse.view()?, at_g.view()?)?;
            let wrap = |memory, like: &Tensor| tensor(device, memory, like.shape(), like.dtype());
            Ok([wrap(dq, q), wrap(dk, k), wrap(dv, v)])
        }
    }
}
