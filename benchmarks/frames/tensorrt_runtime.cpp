// TensorRT 8.5's runtime as plain C functions, for a Python that its own bindings do not know:
// tensorrt_runtime.py calls them by ctypes. NvInfer's headers come from NVIDIA/TensorRT's release
// 8.5.3, its symbols from libnvinfer.so.8, which the caller has loaded:
//
//   g++ -O2 -std=c++17 -shared -fPIC -static-libstdc++ -I TensorRT/include -I cuda/include
//       tensorrt_runtime.cpp -o libtensorrt_runtime.so

#include <NvInferRuntime.h>

#include <cstring>
#include <memory>

namespace {

using Log = void (*)(int severity, char const* message);

class Logger : public nvinfer1::ILogger {
public:
    explicit Logger(Log log) : mLog(log) {}

    void log(Severity severity, char const* message) noexcept override
    {
        mLog(static_cast<int>(severity), message);
    }

private:
    Log mLog;
};

// Destroyed in reverse: the context before its engine, that before its runtime.
struct Plan {
    explicit Plan(Log log) : logger(log) {}

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

} // namespace

extern "C" {

// Returns null where TensorRT refuses; the reason went to `log`.
Plan* plan_open(char const* bytes, std::size_t size, Log log)
{
    auto plan = std::make_unique<Plan>(log);
    plan->runtime.reset(nvinfer1::createInferRuntime(plan->logger));
    if (!plan->runtime)
        return nullptr;
    plan->engine.reset(plan->runtime->deserializeCudaEngine(bytes, size));
    return plan->engine ? plan.release() : nullptr;
}

int plan_make_context(Plan* plan)
{
    plan->context.reset(plan->engine->createExecutionContext());
    return plan->context != nullptr;
}

int plan_tensors(Plan* plan)
{
    return plan->engine->getNbIOTensors();
}

char const* plan_tensor_name(Plan* plan, int index)
{
    return plan->engine->getIOTensorName(index);
}

int plan_tensor_is_input(Plan* plan, char const* name)
{
    return plan->engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
}

int plan_tensor_type(Plan* plan, char const* name)
{
    return static_cast<int>(plan->engine->getTensorDataType(name));
}

// Fills `sides`, which has room for nvinfer1::Dims::MAX_DIMS, and returns how many there are.
int plan_tensor_shape(Plan* plan, char const* name, int* sides)
{
    auto const shape = plan->engine->getTensorShape(name);
    std::memcpy(sides, shape.d, sizeof(shape.d));
    return shape.nbDims;
}

int plan_bind(Plan* plan, char const* name, void* address)
{
    return plan->context->setTensorAddress(name, address);
}

int plan_enqueue(Plan* plan, cudaStream_t stream)
{
    return plan->context->enqueueV3(stream);
}

void plan_close(Plan* plan)
{
    delete plan;
}

} // extern "C"
