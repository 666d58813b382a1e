// A device named "cuda" whose memory is the host's: __init__.py says what it shows and what not.
//
// Its tensors are real ones, with the dispatch key CUDA. An operator that is called on them runs
// its CPU kernel on aliases, CPU tensors over the same memory, after what a GPU would refuse has
// been refused. While a graph is captured, calls are noted down as well, and what they have
// written is undone at its end; a replay makes the same calls again.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Storage;
using torch::jit::Stack;

namespace {

// ---- State --------------------------------------------------------------------------------------

std::recursive_mutex one_at_a_time;  // images are pinned and copied by other threads
std::atomic<bool> capturing{false};
bool refuse_waits = false;
thread_local DeviceIndex current = 0;

DeviceIndex device_count() {
  static const auto count = static_cast<DeviceIndex>(std::atoi(std::getenv("ITRD_EMULATED_CUDA")));
  return count;
}

DeviceIndex index_or_current(DeviceIndex index) {
  TORCH_CHECK(index < device_count(), "CUDA error: invalid device ordinal");
  return index < 0 ? current : index;
}

DeviceIndex exchange_device(DeviceIndex index) {
  return std::exchange(current, index_or_current(index));
}

void refuse_in_capture(const std::string& what) {
  TORCH_CHECK(
      !capturing, "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// ---- Memory -------------------------------------------------------------------------------------

// Memory of the device that lives as long as `owner`.
template <typename Owner>
c10::DataPtr on_device(const void* data, Owner owner, DeviceIndex index) {
  return {
      const_cast<void*>(data),
      new Owner(std::move(owner)),
      [](void* held) { delete static_cast<Owner*>(held); },
      Device(DeviceType::CUDA, index)};
}

struct DeviceAllocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    void* data = memory.get();
    if (bytes) {
      memset(data, 0x7f, bytes);  // new memory holds anything: numbers that nobody overlooks
    }
    return on_device(data, std::move(memory), current);
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
};

// Page-locked memory: the only kind that may be copied from or to without waiting.
struct PinnedAllocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto* data = static_cast<char*>(std::aligned_alloc(64, (bytes / 64 + 1) * 64));
    std::lock_guard lock(mutex_);
    blocks_[data] = bytes;
    return {data, data, &release, Device(DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
  static bool contains(const void* pointer) {
    std::lock_guard lock(mutex_);
    const auto* place = static_cast<const char*>(pointer);
    auto after = blocks_.upper_bound(place);
    return after != blocks_.begin() && place < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  static void release(void* data) {
    std::lock_guard lock(mutex_);
    blocks_.erase(static_cast<char*>(data));
    std::free(data);
  }
  static inline std::mutex mutex_;
  static inline std::map<const char*, size_t> blocks_;
};

// Neither is ever destroyed: tensors outlive what a library destroys when the process ends.
auto* const device_allocator = new DeviceAllocator;
auto* const pinned_allocator = new PinnedAllocator;

// ---- Random numbers -----------------------------------------------------------------------------

struct DeviceGenerator : c10::GeneratorImpl {
  at::Generator host = at::detail::createCPUGenerator();  // a reference, which others may share

  explicit DeviceGenerator(DeviceIndex index)
      : GeneratorImpl(Device(DeviceType::CUDA, index), DispatchKeySet(DispatchKey::CUDA)) {}

  // A generator that the host asks or tells something cannot be part of a graph.
  at::Generator& outside_capture() const {
    refuse_in_capture("access to a generator");
    return const_cast<DeviceGenerator*>(this)->host;
  }
  void set_current_seed(uint64_t seed) override { outside_capture().set_current_seed(seed); }
  uint64_t current_seed() const override { return outside_capture().current_seed(); }
  uint64_t seed() override { return outside_capture().seed(); }
  void set_state(const c10::TensorImpl& state) override {
    outside_capture().unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return outside_capture().unsafeGetGeneratorImpl()->get_state();
  }
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) override {
    host = static_cast<DeviceGenerator*>(state.get())->host;
  }
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override {
    auto state = c10::make_intrusive<DeviceGenerator>(device().index());
    state->host = host;
    return state;
  }
  GeneratorImpl* clone_impl() const override {
    auto* copy = new DeviceGenerator(device().index());
    copy->host = outside_capture().clone();
    return copy;
  }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "offsets are not emulated"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "offsets are not emulated"); }
};

at::Generator default_generator(int64_t index) {
  static auto* all = [] {
    auto* made = new std::vector<at::Generator>;
    for (DeviceIndex i = 0; i < device_count(); i++) {
      made->push_back(at::make_generator<DeviceGenerator>(i));
    }
    return made;
  }();
  return all->at(index);
}

// ---- What torch asks a device -------------------------------------------------------------------

// There is one stream, and everything on it is done when its call returns.
struct DeviceGuard : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  Device exchangeDevice(Device device) const override {
    return Device(DeviceType::CUDA, exchange_device(device.index()));
  }
  void setDevice(Device device) const override { exchange_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return device_count(); }
  c10::Stream getStream(Device device) const override {
    const auto index = index_or_current(device.index());
    return c10::Stream(c10::Stream::DEFAULT, Device(DeviceType::CUDA, index));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
};

C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuard)

}  // namespace

namespace at {  // where the macro below expects it

struct EmulatedHooks : CUDAHooksInterface {
  explicit EmulatedHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  Generator getNewGenerator(DeviceIndex index) const override {
    return make_generator<DeviceGenerator>(index_or_current(index));
  }
  Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator; }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::contains(data); }
};

C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, EmulatedHooks)

}  // namespace at

namespace {

// ---- Graphs -------------------------------------------------------------------------------------

struct RecordedCall {
  c10::OperatorHandle op;
  Stack inputs, outputs;
  std::vector<Tensor> owners;  // of the memory that inputs and outputs are aliases of
};

struct Overwritten {
  void* place;
  std::string bytes;
};

std::map<int64_t, std::vector<RecordedCall>> graphs;
int64_t newest_graph = 0;
std::vector<Overwritten> overwritten;

// CPU kernels alone, whatever the caller has switched on: calls were recorded below all of that.
struct OnlyKernels {
  at::AutoDispatchBelowAutograd no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  c10::impl::ExcludeDispatchKeyGuard nothing_else{DispatchKeySet(
      {DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::ADInplaceOrView})};
};

void capture_begin() {
  std::lock_guard lock(one_at_a_time);
  refuse_in_capture("another capture");
  graphs[++newest_graph];
  capturing = true;
}

// Ends a capture, undoes what its calls have written, and returns the graph's number.
int64_t capture_end() {
  std::lock_guard lock(one_at_a_time);
  capturing = false;
  for (auto it = overwritten.rbegin(); it != overwritten.rend(); ++it) {
    memcpy(it->place, it->bytes.data(), it->bytes.size());
  }
  overwritten.clear();
  return newest_graph;
}

void forget(int64_t graph) {
  std::lock_guard lock(one_at_a_time);
  graphs.erase(graph);
}

void copy_if_elsewhere(const Tensor& now, const Tensor& recorded) {
  if (now.defined() && now.storage().data() != recorded.storage().data()) {
    recorded.copy_(now);
  }
}

void replay(int64_t graph) {
  std::lock_guard lock(one_at_a_time);
  OnlyKernels guard;
  for (auto& call : graphs.at(graph)) {
    Stack stack = call.inputs;
    call.op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &stack);
    // Later calls read their inputs where the first results were.
    for (size_t i = 0; i < stack.size(); i++) {
      if (stack[i].isTensor()) {
        copy_if_elsewhere(stack[i].toTensor(), call.outputs[i].toTensor());
      } else if (stack[i].isTensorList()) {
        const auto now = stack[i].toTensorVector(), recorded = call.outputs[i].toTensorVector();
        for (size_t k = 0; k < now.size(); k++) {
          copy_if_elsewhere(now[k], recorded[k]);
        }
      }
    }
  }
}

// ---- Operators ----------------------------------------------------------------------------------

using Names = std::unordered_set<std::string>;

// The host waits for their result, or for its shape.
const Names waiting{
    "_linalg_eigh", "_linalg_svd", "_local_scalar_dense", "_unique2", "bincount", "equal", "histc",
    "linalg_eig", "linalg_lstsq", "masked_select", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim"};

// Take indices from the CPU, and masks, whose size the host has to know.
const Names indexing{
    "_index_put_impl_", "_unsafe_index", "_unsafe_index_put", "index", "index_put", "index_put_"};

// Take no CPU tensor at all; elsewhere one without dimensions counts as a number.
const Names strict{
    "addmm", "bmm", "cat", "embedding", "gather", "index_add_", "index_copy_", "index_select", "mm",
    "scatter", "stack"};

Tensor tensor_over(Storage storage, DispatchKey key, const Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

// One call of one operator.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack& stack) : op_(op), name_(op.schema().name()) {
    name_.erase(0, name_.find("::") + 2);
    const auto& arguments = op.schema().arguments();
    for (size_t i = 0; i < arguments.size(); i++) {
      inputs_.push_back(to_host(torch::jit::peek(stack, i, arguments.size()), arguments[i]));
    }
    torch::jit::drop(stack, arguments.size());
    if (index_ < 0) {
      index_ = current;
    }
  }

  void run(Stack& stack) {
    if (name_ == "copy_" && touches_host_) {
      waits_ = !(pinned_ && inputs_[2].toBool());  // copy_(self, src, non_blocking)
    }
    if (waits_ || waiting.count(name_)) {
      refuse_in_capture(name_);
      TORCH_CHECK(!refuse_waits, "called a synchronizing CUDA operation (", name_, ")");
    }
    Tensor state;  // of the generator: a capture must not advance it
    if (capturing) {
      save_written();
      if (generator_) {
        state = Tensor(generator_->get_state());
      }
    }
    Stack outputs = inputs_;
    {
      OnlyKernels guard;
      op_.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &outputs);
    }
    if (capturing) {
      if (generator_) {
        generator_->set_state(*state.unsafeGetTensorImpl());
      }
      graphs[newest_graph].push_back({op_, inputs_, outputs, owners_});
    }
    take_over_resized();
    for (const auto& value : outputs) {
      stack.push_back(to_device(value));
    }
  }

 private:
  IValue to_host(const IValue& value, const c10::Argument& argument) {
    if (value.isTensor()) {
      return to_host(value.toTensor(), argument);
    }
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) {
        list.push_back(to_host(tensor, argument));
      }
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (std::optional<Tensor> tensor : value.toOptionalTensorList()) {
        list.push_back(tensor ? std::optional(to_host(*tensor, argument)) : std::nullopt);
      }
      return list;
    }
    if (value.isDevice()) {
      index_ = index_ < 0 ? index_or_current(value.toDevice().index()) : index_;
      return Device(DeviceType::CPU);
    }
    if (value.isGenerator() || argument.name() == "generator") {
      const auto ours = default_generator(index_ < 0 ? current : index_);
      const auto given = value.isGenerator() ? value.toGenerator() : ours;
      TORCH_CHECK(given.device().is_cuda(), "Expected a 'cuda' device type for generator");
      TORCH_CHECK(
          !capturing || given == ours,
          "Attempt to increase offset for a CUDA generator not in capture mode");
      auto& host = static_cast<DeviceGenerator*>(given.unsafeGetGeneratorImpl())->host;
      generator_ = host.unsafeGetGeneratorImpl();
      return host;
    }
    return value;
  }

  Tensor to_host(const Tensor& tensor, const c10::Argument& argument) {
    if (!tensor.defined()) {
      return tensor;
    }
    const bool index = indexing.count(name_) && argument.name() == "indices";
    waits_ |= index && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte);
    if (!tensor.is_cuda()) {
      return accept_host(tensor, argument, index);
    }
    TORCH_CHECK(
        owners_.empty() || name_ == "copy_" || owners_[0].device() == tensor.device(),
        "Expected all tensors to be on the same device, but found at least two devices, ",
        owners_[0].device(), " and ", tensor.device(), " (", name_, ")");
    index_ = tensor.device().index();
    const auto alias = alias_of(tensor);
    // Batch norms write statistics that their schemas do not name as written.
    if (is_written(argument) || argument.name().rfind("running_", 0) == 0) {
      written_.push_back(alias);
    }
    return alias;
  }

  static bool is_written(const c10::Argument& argument) {
    return argument.alias_info() && argument.alias_info()->isWrite();
  }

  Tensor alias_of(const Tensor& tensor) {
    for (size_t i = 0; i < owners_.size(); i++) {
      if (owners_[i].is_same(tensor)) {
        return aliases_[i];
      }
    }
    const auto& storage = tensor.storage();
    Storage memory(
        Storage::use_byte_size_t(), storage.nbytes(),
        c10::DataPtr(const_cast<void*>(storage.data()), Device(DeviceType::CPU)),
        c10::GetCPUAllocator(), /*resizable=*/true);
    owners_.push_back(tensor);
    aliases_.push_back(tensor_over(std::move(memory), DispatchKey::CPU, tensor));
    return aliases_.back();
  }

  Tensor accept_host(const Tensor& tensor, const c10::Argument& argument, bool index) {
    if (name_ == "copy_") {
      touches_host_ = true;
      pinned_ &= PinnedAllocator::contains(tensor.storage().data());
      return tensor;
    }
    if (index) {
      waits_ = true;
      return tensor;
    }
    TORCH_CHECK(
        tensor.dim() == 0 && !is_written(argument) && !strict.count(name_),
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
        "cpu! (", name_, ", tensor of shape ", tensor.sizes(), ")");
    // A graph keeps the number that it was recorded with.
    const bool keep = capturing && !tensor.unsafeGetTensorImpl()->is_wrapped_number();
    return keep ? tensor.clone() : tensor;
  }

  void save_written() {
    for (const auto& tensor : written_) {
      const auto& storage = tensor.storage();
      overwritten.push_back(
          {const_cast<void*>(storage.data()),
           std::string(static_cast<const char*>(storage.data()), storage.nbytes())});
    }
  }

  // Results that the kernel has given a new size, or new memory.
  void take_over_resized() {
    for (size_t i = 0; i < owners_.size(); i++) {
      const Tensor &owner = owners_[i], &alias = aliases_[i];
      if (alias.storage().data() != owner.storage().data()) {
        TORCH_CHECK(
            !capturing || !owner.storage().nbytes(), name_, " resizes what a graph refers to");
        auto* storage = owner.storage().unsafeGetStorageImpl();
        storage->set_data_ptr_noswap(on_device(alias.storage().data(), alias.storage(), index_));
        storage->set_nbytes(alias.storage().nbytes());
      }
      if (alias.sizes() != owner.sizes() || alias.strides() != owner.strides()) {
        owner.unsafeGetTensorImpl()->set_sizes_and_strides(
            alias.sizes(), alias.strides(), alias.storage_offset());
      }
    }
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) {
      return to_device(value.toTensor());
    }
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) {
        list.push_back(to_device(tensor));
      }
      return list;
    }
    return value;
  }

  // An argument itself, a view of one, or a tensor in memory that is new.
  Tensor to_device(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    for (size_t i = 0; i < owners_.size(); i++) {
      if (aliases_[i].is_same(tensor)) {
        return owners_[i];
      }
    }
    if (name_ == "copy_") {
      return tensor;  // onto the CPU
    }
    for (size_t i = 0; i < owners_.size(); i++) {
      if (aliases_[i].storage().is_alias_of(tensor.storage())) {
        return tensor_over(owners_[i].storage(), DispatchKey::CUDA, tensor);
      }
    }
    const auto& made = tensor.storage();
    Storage storage(
        Storage::use_byte_size_t(), made.nbytes(), on_device(made.data(), made, index_),
        device_allocator, /*resizable=*/true);
    return tensor_over(std::move(storage), DispatchKey::CUDA, tensor);
  }

  const c10::OperatorHandle& op_;
  std::string name_;
  Stack inputs_;
  std::vector<Tensor> owners_, aliases_;  // the device's tensors, and CPU tensors over their memory
  std::vector<Tensor> written_;
  c10::GeneratorImpl* generator_ = nullptr;
  DeviceIndex index_ = -1;
  bool waits_ = false, touches_host_ = false, pinned_ = true;
};

void call_on_host(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  std::lock_guard lock(one_at_a_time);
  Call(op, *stack).run(*stack);
}

// ---- Operators that make tensors ----------------------------------------------------------------

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;

c10::ScalarType type_or_default(Type type) {
  return type.value_or(c10::typeMetaToScalarType(c10::get_default_dtype()));
}

struct OnDevice {
  explicit OnDevice(std::optional<Device> device)
      : before(exchange_device(device ? device->index() : -1)) {}
  ~OnDevice() { current = before; }
  DeviceIndex before;
};

Tensor empty(
    c10::IntArrayRef size, Type type, Layout, std::optional<Device> device, std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  OnDevice guard(device);
  return at::detail::empty_generic(
      size, device_allocator, DispatchKeySet(DispatchKey::CUDA), type_or_default(type), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, Type type, Layout, std::optional<Device> device,
    std::optional<bool>) {
  OnDevice guard(device);
  return at::detail::empty_strided_generic(
      size, stride, device_allocator, DispatchKeySet(DispatchKey::CUDA), type_or_default(type));
}

Tensor& set_storage_at(
    Tensor& self, Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  TORCH_CHECK(storage.device() == self.device(), "storage and tensor are on different devices");
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

Tensor& set_storage(Tensor& self, Storage storage) {
  const auto length = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return set_storage_at(self, std::move(storage), 0, {length}, {1});
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&call_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage_at);
  // Theirs would be kernels for all devices, which look for CUDA's half of themselves.
  for (const char* name :
       {"_local_scalar_dense", "convolution", "convolution_backward", "copy_", "fill_.Scalar"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&call_on_host>());
  }
}

// ---- What torch.cuda asks for, as torch.ops.emulated_cuda ---------------------------------------

TORCH_LIBRARY(emulated_cuda, m) {
  m.def("current_device() -> int", []() -> int64_t { return current; });
  m.def("set_device(int index) -> ()", [](int64_t index) { exchange_device(index); });
  m.def("default_generator(int index) -> Generator?", &default_generator);
  m.def("refuse_waits(bool value) -> ()", [](bool value) { refuse_waits = value; });
  m.def("refuse_in_capture(str what) -> ()", [](std::string what) { refuse_in_capture(what); });
  m.def("is_capturing() -> bool", []() -> bool { return capturing; });
  m.def("capture_begin() -> ()", &capture_begin);
  m.def("capture_end() -> int", &capture_end);
  m.def("replay(int graph) -> ()", &replay);
  m.def("forget(int graph) -> ()", &forget);
}

}  // namespace
