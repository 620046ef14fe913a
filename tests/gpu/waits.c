/* How often does a process wait for the GPU? Preloaded, it counts the calls of CUDA's runtime in which the host may wait, passes
   them on, and tells the counts in the file that WAITS names when the process ends.

       cc -shared -fPIC -O2 -o waits.so waits.c -ldl

   The argument lists are those of the runtime's C interface; only that every argument is passed on matters here. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_long device, stream, event, copies;

#define PASSED_ON(name, count, parameters, arguments)            \
    int name parameters {                                        \
        static int(*next) parameters;                            \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name);    \
        if (!next) {                                             \
            fprintf(stderr, "waits.so: there is no %s\n", #name); \
            abort();                                             \
        }                                                        \
        atomic_fetch_add(&count, 1);                             \
        return next arguments;                                   \
    }

PASSED_ON(cudaDeviceSynchronize, device, (void), ())
PASSED_ON(cudaStreamSynchronize, stream, (void *at), (at))
PASSED_ON(cudaEventSynchronize, event, (void *at), (at))
PASSED_ON(cudaMemcpy, copies, (void *to, const void *from, size_t size, int kind), (to, from, size, kind))

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("WAITS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "cudaDeviceSynchronize %ld\ncudaStreamSynchronize %ld\n", (long)device, (long)stream);
    fprintf(file, "cudaEventSynchronize %ld\ncudaMemcpy %ld\n", (long)event, (long)copies);
    fclose(file);
}
